-- Ends an episode's rollout.
-- KEYS: episode
-- Returns 'closed', stored samples, global batch size; or 'missing'; or 'short', stored, expected.
local stored, expected, global_batch_size =
  unpack(redis.call('HMGET', KEYS[1], 'stored', 'expected', 'global_batch_size'))
if not stored then return {'missing'} end
stored, expected = tonumber(stored), tonumber(expected)
if stored < expected then return {'short', stored, expected} end
redis.call('HDEL', KEYS[1], '') -- as a full store lets a script begin
redis.call('HSET', KEYS[1], 'closed', 1)
return {'closed', stored, tonumber(global_batch_size)}
