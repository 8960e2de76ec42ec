-- One page of some topics. ARGV from 7: where it begins (A, E or L), the cursor's epoch, run and position or the number of the
-- last ones, how many records and bytes of bodies, then the topics.
-- Answers epoch, run, newest, how far cursors of the asked run are good (-1: not at all), how far the page is complete, the floor,
-- how many topics have ended, which (from 0) and where, then position and bytes of each record. Bytes begin with the length of
-- the body.

local later = open(false)
if later then return later end
local from, after, most, room = ARGV[7], tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local floor, held, sources, topics = 0, 0, {}, {}
local good = from == 'A' and (good_up_to(ARGV[8], ARGV[9]) or -1) or state.newest
if after > good and from == 'A' then return {state.epoch, state.run, text(state.newest), text(good), text(state.newest), '0', '0'} end

for i = 13, #ARGV do
  local m = find(ARGV[i])
  topics[#topics + 1] = m or false
  floor = math.max(floor, m and m.floor or state.floor)
  if m then
    held = held + m.count + m.states
    if m.count > 0 then sources[#sources + 1] = {m = m, events = true} end
    if m.states > 0 then sources[#sources + 1] = {m = m, events = false} end
  end
end
save_losses()

-- How many to take from a source at a time: about as many as there is room for.
local function portion(m)
  local average = math.max(1, m.bytes / math.max(1, m.count + m.states) - OVERHEAD)
  return text(math.max(1, math.min(most + 1, math.ceil(room / average) + 1, 1000 / #sources + 16)))
end

local function refill(source, backwards)
  local m, list = source.m, {}
  if source.events then
    local got
    if backwards then
      got = redis.call('XREVRANGE', m.s, source.at and '(' .. source.at or '+', '-', 'COUNT', portion(m))
    else
      got = redis.call('XRANGE', m.s, '(' .. source.at, '+', 'COUNT', portion(m))
    end
    for _, entry in ipairs(got) do list[#list + 1] = {tonumber(string.match(entry[1], '^%d+')), entry[2][2]} end
    if #got > 0 then source.at = got[#got][1] end
  else
    local got
    if backwards then
      got = redis.call('ZREVRANGEBYSCORE', m.z, source.at and '(' .. source.at or '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, portion(m))
    else
      got = redis.call('ZRANGEBYSCORE', m.z, '(' .. source.at, '+inf', 'WITHSCORES', 'LIMIT', 0, portion(m))
    end
    for i = 1, #got, 2 do
      -- Where only places are asked for, the bytes are not.
      list[#list + 1] = {tonumber(got[i + 1]), not backwards and string.sub(redis.call('HGET', m.h, got[i]), STAMP + 1)}
    end
    if #got > 0 then source.at = text(tonumber(got[#got])) end
  end
  source.list, source.next = list, 1
end

-- The next of all sources, in order, or nil.
local function take(backwards)
  local best, best_at
  for _, source in ipairs(sources) do
    if not source.list or (source.next > #source.list and #source.list > 0) then refill(source, backwards) end
    local entry = source.list[source.next]
    if entry and (not best or (backwards and entry[1] > best_at) or (not backwards and entry[1] < best_at)) then
      best, best_at = source, entry[1]
    end
  end
  if not best then return nil end
  best.next = best.next + 1
  return best.list[best.next - 1]
end

if from == 'E' then after = 0 end
if from == 'L' then
  local last = after
  after = last == 0 and state.newest or 0
  if last > 0 and last < held then
    local entry
    for _ = 1, last do entry = take(true) end
    after = entry and entry[1] - 1 or 0
  end
end
for _, source in ipairs(sources) do
  source.list, source.at = nil, source.events and text(after) .. '-18446744073709551615' or text(after)
end

local through, records = state.newest, {}
while true do
  local entry = take(false)
  if not entry then break end
  if most <= 0 or room <= 0 then
    through = tonumber(records[#records - 1])
    break
  end
  records[#records + 1] = text(entry[1])
  records[#records + 1] = entry[2]
  most, room = most - 1, room - struct.unpack('>I4', entry[2])
end

local ended = {}
for i, m in ipairs(topics) do
  if m and m.ended > 0 and m.ended <= through then
    ended[#ended + 1] = text(i - 1)
    ended[#ended + 1] = text(m.ended)
  end
end
local answer = {state.epoch, state.run, text(state.newest), text(good), text(through), text(floor), text(#ended / 2)}
for _, item in ipairs(ended) do answer[#answer + 1] = item end
for _, item in ipairs(records) do answer[#answer + 1] = item end
return answer
