-- How entries come into a topic and leave it, for the scripts that write.
--
-- A topic's events, its end and the last events of its keys are a stream, SEQ-0 -> (p, t[, k]); the newest of its keys a set,
-- key -> SEQ, and a hash, key -> time and bytes, so that replacing them leaves no holes. `r` says where in the stream the last
-- event of a key is.

local LIMITS = {'events', 'bytes', 'age', 'latest', 'finished', 'idle', 'total', 'pointers', 'memory'}
local limits = {}
for i, name in ipairs(LIMITS) do limits[name] = tonumber(ARGV[6 + i]) end
local NEXT = 7 + #LIMITS

local function count_bytes(m, bytes)
  m.bytes, state.bytes = m.bytes + bytes, math.max(0, state.bytes + bytes)
  m.changed = true
end

local function remove_event(m, entry)
  local fields = entry[2]
  redis.call('XDEL', m.s, entry[1])
  m.count = m.count - 1
  count_bytes(m, -#fields[2] - OVERHEAD)
  if fields[5] == 'k' then
    redis.call('HDEL', m.r, fields[6])
    m.removals = m.removals - 1
  end
  if m.count == 0 then redis.call('UNLINK', m.s) end
end

local function remove_state(m, key)
  local len = redis.call('HSTRLEN', m.h, key)
  redis.call('ZREM', m.z, key)
  redis.call('HDEL', m.h, key)
  m.states = m.states - 1
  count_bytes(m, STAMP - len - OVERHEAD)
end

-- What a newer one of its key takes the place of. That raises no floor.
local function replace(m, key)
  if m.states > 0 and redis.call('ZSCORE', m.z, key) then remove_state(m, key) end
  local at = m.removals > 0 and redis.call('HGET', m.r, key)
  if at then
    local entry = redis.call('XRANGE', m.s, at, at)[1]
    if entry then remove_event(m, entry) else lose(m) end
  end
end

local function first_event(m) return m.count > 0 and redis.call('XRANGE', m.s, '-', '+', 'COUNT', 1)[1] or nil end

local function first_state(m)
  if m.states == 0 then return nil end
  local first = redis.call('ZRANGE', m.z, 0, 0, 'WITHSCORES')
  return first[1], tonumber(first[2])
end

-- When what is the newest of a key was appended.
local function since(m, key) return tonumber(string.sub(redis.call('HGET', m.h, key) or '', 1, STAMP)) or 0 end

local function position_of(id) return tonumber(string.match(id, '^%d+')) end

local function evict_event(m, entry)
  m.floor = math.max(m.floor, position_of(entry[1]))
  remove_event(m, entry)
end

local function evict_state(m, key, position)
  m.floor = math.max(m.floor, position)
  remove_state(m, key)
end

-- Removes the oldest of a topic, of whatever kind, or of what is no state if there is any.
local function evict(m, spare_state)
  local entry = first_event(m)
  local key, position
  if not entry or not spare_state then key, position = first_state(m) end
  if entry and (not key or position_of(entry[1]) < position) then
    evict_event(m, entry)
  elseif key then
    evict_state(m, key, position)
  else
    return false
  end
  return true
end

local function add(m, position, kind, key, bytes, now)
  if kind == 'l' or kind == 'r' then replace(m, key) end
  local stamp = string.format('%0' .. STAMP .. '.0f', now)
  -- What the topic does not know of is not its own.
  if kind == 'l' then
    if m.states == 0 then redis.call('UNLINK', m.z, m.h) end
    redis.call('ZADD', m.z, text(position), key)
    redis.call('HSET', m.h, key, stamp .. bytes)
    m.states = m.states + 1
  else
    local id = text(position) .. '-0'
    local function try()
      if kind == 'r' then return redis.pcall('XADD', m.s, id, 'p', bytes, 't', stamp, 'k', key) end
      return redis.pcall('XADD', m.s, id, 'p', bytes, 't', stamp)
    end
    if m.count == 0 then redis.call('UNLINK', m.s) end
    local added = try()
    if type(added) == 'table' and added.err then
      -- It has what comes later: what is known of the log is from an older copy than this.
      lose(m)
      added = try()
      if type(added) == 'table' and added.err then error(added.err) end
    end
    if kind == 'r' then
      if m.removals == 0 then redis.call('UNLINK', m.r) end
      redis.call('HSET', m.r, key, id)
      m.removals = m.removals + 1
    end
    m.count = m.count + 1
  end
  count_bytes(m, #bytes + OVERHEAD)
  m.newest, m.touched = position, now
  if kind == 'f' then m.ended, m.ended_at = position, now end
end

local function keep_ended() return math.max(limits.finished, limits.age) end

-- When there is something to do for a topic, no later than that.
local function when_due(m)
  local at = m.touched + limits.idle
  local entry = first_event(m)
  if entry then at = math.min(at, tonumber(entry[2][4]) + limits.age) end
  local key = first_state(m)
  if key then at = math.min(at, since(m, key) + (m.ended > 0 and limits.age or limits.latest)) end
  if m.ended > 0 then at = math.min(at, m.ended_at + keep_ended()) end
  if m.count == 0 and m.states == 0 and m.ended == 0 then at = math.min(at, m.touched + limits.age) end
  return math.min(at, NEVER)
end

local function plan(m, at)
  m.due, m.changed = at, true
  redis.call('ZADD', due, text(at), m.topic)
end

-- What has to be said to all nodes: one thing for each position that is given.
local pointers, parts = {}, {}

local function tell(kind, topic, bytes)
  pointers[#pointers + 1] = kind
  pointers[#pointers + 1] = topic
  parts[#parts + 1] = kind .. #bytes .. '\n' .. bytes
end

-- Removes a topic, which takes a position like a record.
local function forget(m)
  state.newest = state.newest + 1
  state.floor = math.max(state.floor, m.floor, m.newest)
  state.bytes = math.max(0, state.bytes - m.bytes)
  remove_keys(m)
  redis.call('HDEL', log, 't:' .. m.topic)
  redis.call('ZREM', due, m.topic)
  metas[m.topic] = nil
  tell('g', m.topic, m.topic)
end

-- Makes what was done known: to the log, and to all nodes. Positions from `before` on were given without a hole.
local function commit(before)
  save()
  if #parts == 0 then return end
  local least = text(math.max(0, state.newest - limits.pointers))
  -- There is an end to what Lua can unpack.
  for first = 1, #pointers, 2000 do
    local last = math.min(first + 1999, #pointers)
    local id = text(before + last / 2) .. '-0'
    local function point() return redis.pcall('XADD', recent, 'MINID', '~', least, id, unpack(pointers, first, last)) end
    local done = point()
    if type(done) == 'table' and done.err then
      -- Something else is in its place.
      redis.call('UNLINK', recent)
      point()
    end
  end
  publish(head_of('B') .. text(before) .. ' ' .. text(state.newest) .. '\n' .. table.concat(parts))
end

-- Brings all topics together within their bound, as far as one call should: what is due first goes first.
local function bound_total(tries)
  local rank = 0
  while state.bytes > limits.total and tries > 0 do
    tries = tries - 1
    local topic = redis.call('ZRANGE', due, rank, rank)[1]
    local m = topic and find(topic)
    if not m then
      if not topic then return end
      redis.call('ZREM', due, topic)
    else
      local at = when_due(m)
      if at > m.due then
        plan(m, at)
      elseif evict(m, true) then
        plan(m, when_due(m))
      else
        -- It holds nothing: the next one.
        rank = rank + 1
      end
    end
  end
end
