-- A batch that was given up is not to be done later, should it still be under way. KEYS: its lane. ARGV: its number.
local last = string.match(redis.call('GET', KEYS[1]) or '', '^%d+')
if not last or tonumber(last) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1] .. ' fenced ', 'PX', '600000') end
return 1
