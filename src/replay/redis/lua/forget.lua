-- Forgets a topic. ARGV from NEXT: the topic.

local later = open(true)
if later then return later end
local m = find(ARGV[NEXT])
if m then
  local before = state.newest
  forget(m)
  commit(before)
end
return {state.epoch, state.run, text(state.newest)}
