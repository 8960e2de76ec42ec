-- What every script begins with: the log as it stands, and whether it is the one that the calling node knows.
--
-- KEYS: the log, the pointers of the feed, when topics are due. All keys of a log have one hash tag, so they are in one slot.
-- ARGV: the prefix of all keys; the epoch, the run and the newest position that the node has seen; an epoch and a run's number,
-- drawn by the node, for when they are needed. Then what the script itself asks for.
--
-- Positions are doubles here: whole up to 2^53, and always written with text().

local log, recent, due = KEYS[1], KEYS[2], KEYS[3]
local prefix = ARGV[1]
local FORMAT = 1        -- of all keys: a log of a later one is left alone. Logs of the first may not have it written
local RUNS = 64         -- how many runs are known; cursors of older ones are foreign
local OVERHEAD = 64     -- what an entry costs beside its bytes, about
local NEVER = 1e14      -- later than any clock
local STAMP = 13        -- digits of a time in milliseconds

local state
local metas = {}

local function text(number) return string.format('%.0f', number) end

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- Where this is not permitted, nodes find out by themselves, later.
local function publish(message) redis.pcall('PUBLISH', prefix .. 'feed', message) end

local function head_of(kind) return kind .. ' ' .. state.epoch .. ' ' .. state.run .. ' ' end

local function place_of_run(number)
  for i, run in ipairs(state.runs) do
    if run[1] == number then return i end
  end
end

-- Begins a new run at the newest position. `lost` is one that the log does not know: it began behind what was restored.
local function begin_run(lost)
  local runs = state.runs
  if lost then runs[#runs + 1] = {lost, state.newest} end
  local number = tonumber(ARGV[6])
  while place_of_run(text(number)) do number = (number + 1) % 4294967296 end
  state.run = text(number)
  runs[#runs + 1] = {state.run, state.newest}
  local packed = {}
  for i = math.max(1, #runs - RUNS + 1), #runs do packed[#packed + 1] = runs[i][1] .. ':' .. text(runs[i][2]) end
  redis.call('HSET', log, 'runs', table.concat(packed, ' '))
  publish(head_of('R') .. text(state.newest) .. '\n')
end

-- Reads the state of the log, creates it if there is none, and begins a new run if it may have been rewound: the node has
-- seen more of the present run, or a run that the log does not know; or (asked with `server`, and for a new log) it is
-- another server process that answers: one that was restarted, restored, or took over from another.
-- Returns what the script has to answer, before it does anything, if the log is of a later format.
local function open(server)
  local got = redis.call('HMGET', log, 'epoch', 'runs', 'newest', 'floor', 'bytes', 'server', 'format')
  if got[7] and not (tonumber(got[7]) and tonumber(got[7]) <= FORMAT) then
    return redis.error_reply(
      'FORMAT the log ' .. log .. ' has format ' .. got[7] .. ', and this version of tidings knows them up to ' .. FORMAT
      .. ': bring this node up to date with the others, or give it a log with another name'
    )
  end
  local new, rewound, lost = not got[1], false, nil
  if new then
    state = {epoch = ARGV[5], run = '0', runs = {{'0', 0}}, newest = 0, floor = 0, bytes = 0}
    redis.call('HSET', log, 'epoch', state.epoch, 'runs', '0:0', 'newest', '0', 'floor', '0', 'bytes', '0', 'format', FORMAT)
    -- What is left of one that is gone belongs to nobody.
    redis.call('UNLINK', recent, due)
    publish(head_of('R') .. '0\n')
  else
    state = {
      epoch = got[1], runs = {}, newest = tonumber(got[3] or 0), floor = tonumber(got[4] or 0), bytes = tonumber(got[5] or 0),
    }
    for number, began in string.gmatch(got[2] or '', '(%d+):(%d+)') do
      state.runs[#state.runs + 1] = {number, tonumber(began)}
    end
    local last = state.runs[#state.runs]
    state.run = last and last[1]
    rewound = not last
    if ARGV[2] == state.epoch then
      if ARGV[3] == state.run then
        rewound = tonumber(ARGV[4]) > state.newest
      elseif not place_of_run(ARGV[3]) then
        rewound, lost = true, ARGV[3]
      end
    end
  end
  -- Who finds one reason finds the other as well, so that they are one new run.
  if server or new or rewound then
    local info = redis.pcall('INFO', 'server')
    local id = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
    if id and id ~= got[6] then
      redis.call('HSET', log, 'server', id)
      rewound = not new
    end
  end
  if rewound then begin_run(lost) end
end

-- How far the cursors of a run are good, or nil.
local function good_up_to(epoch, run)
  if epoch ~= state.epoch then return nil end
  local at = place_of_run(run)
  if not at then return nil end
  local good = state.newest
  for i = at + 1, #state.runs do good = math.min(good, state.runs[i][2]) end
  return good
end

-- What is known of a topic: one field of the log, so that all of it is lost together or not at all.
local FIELDS = {'floor', 'newest', 'count', 'bytes', 'states', 'removals', 'ended', 'ended_at', 'touched', 'due'}

local function named(topic)
  return {topic = topic, s = prefix .. 's:' .. topic, z = prefix .. 'z:' .. topic, h = prefix .. 'h:' .. topic, r = prefix .. 'r:' .. topic}
end

local function remove_keys(m) redis.call('UNLINK', m.s, m.z, m.h, m.r) end

-- Gives up what is held of a topic.
local function lose(m)
  remove_keys(m)
  state.bytes = math.max(0, state.bytes - m.bytes)
  m.floor, m.count, m.bytes, m.states, m.removals = math.max(m.floor, m.newest), 0, 0, 0, 0
  m.changed = true
end

-- Whether the keys of a topic have what they should. Keys can be evicted one by one, or deleted by hand.
local function is_whole(m)
  -- An error is no number.
  if m.count > 0 and redis.pcall('XLEN', m.s) ~= m.count then return false end
  if m.removals > 0 and redis.pcall('HLEN', m.r) ~= m.removals then return false end
  return m.states == 0 or (redis.pcall('ZCARD', m.z) == m.states and redis.pcall('HLEN', m.h) == m.states)
end

-- What is known of a topic, or nil. What its keys lack is below its floor from here on.
local function find(topic)
  local m = metas[topic]
  if m then return m end
  local packed = redis.call('HGET', log, 't:' .. topic)
  if not packed then return nil end
  m = named(topic)
  local i = 0
  for word in string.gmatch(packed, '%S+') do
    i = i + 1
    m[FIELDS[i]] = tonumber(word)
  end
  metas[topic] = m
  if not is_whole(m) then lose(m) end
  return m
end

local function find_or_make(topic)
  local m = find(topic)
  if m then return m end
  m = named(topic)
  for _, field in ipairs(FIELDS) do m[field] = 0 end
  m.floor, m.changed = state.floor, true
  -- What is left of a log that is gone.
  remove_keys(m)
  metas[topic] = m
  return m
end

local function save()
  local fields = {'newest', text(state.newest), 'floor', text(state.floor), 'bytes', text(state.bytes)}
  for topic, m in pairs(metas) do
    if m.changed then
      local words = {}
      for i, field in ipairs(FIELDS) do words[i] = text(m[field]) end
      fields[#fields + 1] = 't:' .. topic
      fields[#fields + 1] = table.concat(words, ' ')
    end
    -- There is an end to what Lua can unpack.
    if #fields >= 2000 then
      redis.call('HSET', log, unpack(fields))
      fields = {}
    end
  end
  if #fields > 0 then redis.call('HSET', log, unpack(fields)) end
end

-- What is read only writes if it found something to be lost.
local function save_losses()
  for _, m in pairs(metas) do
    if m.changed then return save() end
  end
end
