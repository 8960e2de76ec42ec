-- What was appended after a place, of all topics, for a feed that has a hole. ARGV from 7: the epoch, run and position after
-- which; how many records and bytes.
-- Answers epoch, run, newest, whether to skip to the newest, how far it is complete, then kind, position and bytes of each.

local later = open(false)
if later then return later end
local after, most, bytes = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local answer = {state.epoch, state.run, text(state.newest), '0', text(after)}
local skip = {state.epoch, state.run, text(state.newest), '1', text(state.newest)}
if ARGV[7] ~= state.epoch or ARGV[8] ~= state.run or after > state.newest then return skip end

-- The bytes of what is at a position: '' if something newer took its place, nil if it is no longer held.
local function look_up(topic, position)
  local m = find(topic)
  local at = text(position)
  local entry = m and m.count > 0 and redis.call('XRANGE', m.s, at .. '-0', at .. '-0')[1]
  if entry then return entry[2][2] end
  local key = m and m.states > 0 and redis.call('ZRANGEBYSCORE', m.z, at, at)[1]
  if key then return string.sub(redis.call('HGET', m.h, key), STAMP + 1) end
  if position > (m and m.floor or state.floor) then return '' end
end

local through = after
local found = redis.pcall('XRANGE', recent, text(after + 1) .. '-0', '+', 'COUNT', most)
for _, batch in ipairs(found) do
  local last = tonumber(string.match(batch[1], '^%d+'))
  local first = last - #batch[2] / 2 + 1
  if first > through + 1 then return skip end
  for position = through + 1, last do
    local i = (position - first) * 2
    local kind, topic = batch[2][i + 1], batch[2][i + 2]
    local item = topic
    if kind == 'e' then item = look_up(topic, position) end
    if not item then
      save_losses()
      return skip
    end
    if item ~= '' then
      answer[#answer + 1] = kind
      answer[#answer + 1] = text(position)
      answer[#answer + 1] = item
      bytes, most = bytes - #item, most - 1
    end
    through = position
    if bytes <= 0 or most <= 0 then break end
  end
  if bytes <= 0 or most <= 0 then break end
end
save_losses()
if bytes > 0 and most > 0 and through < state.newest and #found < tonumber(ARGV[10]) then return skip end
answer[5] = text(through)
return answer
