-- Marks a leased step as trained.
-- KEYS: episode, steps
-- ARGV: lease id, pass, global step
-- Returns 'acked', acknowledged steps of the pass; or 'unleased'; or 'other', the global step that trained it.
local counter = 'acked:' .. ARGV[2]
local step = redis.call('HGET', KEYS[2], ARGV[1])
if not step then return {'unleased'} end
local earlier = string.match(step, '^acked (.+)$')
if earlier and earlier ~= ARGV[3] then return {'other', earlier} end
if not earlier then
  redis.call('HSET', KEYS[2], ARGV[1], 'acked ' .. ARGV[3])
  redis.call('HINCRBY', KEYS[1], counter, 1)
end
return {'acked', tonumber(redis.call('HGET', KEYS[1], counter))}
