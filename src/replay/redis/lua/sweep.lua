-- Removes what is too old, for a few of the topics that are due. ARGV from NEXT: how many, and how many of their entries.
-- Answers epoch, run, newest, and 1 if there may be more to do.

local later = open(true)
if later then return later end
local now, before = clock(), state.newest
local budget = tonumber(ARGV[NEXT + 1])
local topics = redis.call('ZRANGEBYSCORE', due, '-inf', text(now), 'LIMIT', 0, ARGV[NEXT])
local more = #topics >= tonumber(ARGV[NEXT])

for _, topic in ipairs(topics) do
  local m = find(topic)
  if not m then
    redis.call('ZREM', due, topic)
  elseif m.touched + limits.idle <= now or (m.ended > 0 and m.ended_at + keep_ended() <= now) then
    forget(m)
  else
    local entry = first_event(m)
    while entry and tonumber(entry[2][4]) + limits.age <= now and budget > 0 do
      evict_event(m, entry)
      budget = budget - 1
      entry = first_event(m)
    end
    local keep = m.ended > 0 and limits.age or limits.latest
    local key, position = first_state(m)
    while key and since(m, key) + keep <= now and budget > 0 do
      evict_state(m, key, position)
      budget = budget - 1
      key, position = first_state(m)
    end
    if m.count == 0 and m.states == 0 and m.ended == 0 and m.touched + limits.age <= now then
      -- Nothing of it is held: it has the floor of all such topics from here on, and nobody needs to be told.
      state.floor = math.max(state.floor, m.floor)
      remove_keys(m)
      redis.call('HDEL', log, 't:' .. topic)
      redis.call('ZREM', due, topic)
      metas[topic] = nil
    else
      plan(m, when_due(m))
    end
  end
end
bound_total(64)
commit(before)
return {state.epoch, state.run, text(state.newest), (more or budget <= 0) and '1' or '0'}
