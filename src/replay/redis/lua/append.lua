-- Appends a batch. KEYS[4] is the lane: which batches of this sender were done, the last one with what came of it.
-- ARGV from NEXT: the batch's number, then for each record its topic, its kind (e, f, l, r), its key, the name of its idempotency
-- key if it has one, and its bytes.
-- Answers epoch, run, newest, and one outcome for each record: its position, F (finished), D and the position of the first.

local later = open(true)
if later then return later end
-- The first write: where there is no memory it fails, and nothing was done.
redis.call('HSET', log, 'newest', text(state.newest))
local lane, number = KEYS[4], ARGV[NEXT]
local did = redis.call('GET', lane)
if did then
  local last, epoch, rest = string.match(did, '^(%d+) (%w+) (.*)$')
  if not last or tonumber(last) > tonumber(number) or (last == number and epoch == 'fenced') then
    return {state.epoch, state.run, text(state.newest), 'fenced'}
  end
  if last == number and epoch == state.epoch then
    -- A write, so that who waits for replicas waits for them to have it.
    redis.call('PEXPIRE', lane, '600000')
    local answer = {state.epoch, state.run, text(state.newest)}
    for outcome in string.gmatch(rest, '%S+') do answer[#answer + 1] = outcome end
    return answer
  end
end

local now, before, outcomes = clock(), state.newest, {}
for i = NEXT + 1, #ARGV, 5 do
  local topic, kind, key, name, bytes = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local first = false
  if name ~= '' then
    local epoch, position = string.match(redis.call('GET', name) or '', '^(%d+) (%d+)$')
    first = epoch == state.epoch and position
  end
  local m = not first and find_or_make(topic)
  if first then
    outcomes[#outcomes + 1] = 'D' .. first
  elseif m.ended > 0 then
    outcomes[#outcomes + 1] = 'F'
  else
    state.newest = state.newest + 1
    local position = text(state.newest)
    add(m, state.newest, kind, key, bytes, now)
    while m.count + m.states > limits.events or m.bytes > limits.bytes do
      if not evict(m, false) then break end
    end
    local at = now + limits.idle
    if kind ~= 'l' or m.ended > 0 then at = math.min(at, now + limits.age) else at = math.min(at, now + limits.latest) end
    if m.due == 0 or at < m.due then plan(m, math.min(at, NEVER)) end
    if name ~= '' then redis.call('SET', name, state.epoch .. ' ' .. position, 'PX', text(limits.memory)) end
    tell('e', topic, bytes)
    outcomes[#outcomes + 1] = position
  end
end
bound_total(64)
redis.call('SET', lane, number .. ' ' .. state.epoch .. ' ' .. table.concat(outcomes, ' '), 'PX', '600000')
commit(before)
local answer = {state.epoch, state.run, text(state.newest)}
for i, outcome in ipairs(outcomes) do answer[3 + i] = outcome end
return answer
