-- Forgets a topic. ARGV from NEXT: the topic.

open(true)
local m = find(ARGV[NEXT])
if m then
  local before = state.newest
  forget(m)
  commit(before)
end
return {state.epoch, state.run, text(state.newest)}
