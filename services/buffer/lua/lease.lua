-- Records that a step was handed out; again for a step that is not acknowledged: its lessee may have died.
-- KEYS: episode, steps
-- ARGV: lease id, pass, lease timeout in seconds
-- Returns 'leased'; or 'missing'; or 'acked', global step.
local pass = redis.call('HGET', KEYS[1], 'pass')
if not pass then return {'missing'} end
local acked = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^acked (.+)$')
if acked then return {'acked', acked} end
local seconds, microseconds = unpack(redis.call('TIME'))
local deadline = tonumber(seconds) + tonumber(microseconds) / 1e6 + tonumber(ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], string.format('leased %.3f', deadline))
if tonumber(ARGV[2]) > tonumber(pass) then redis.call('HSET', KEYS[1], 'pass', ARGV[2]) end
return {'leased'}
