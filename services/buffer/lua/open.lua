-- Declares an episode unless it is there already.
-- KEYS: episode, the run's episodes, ended and usage
-- ARGV: episode id, expected samples (0: dynamic), global batch size, micro batch size, relayed (0 or 1), passes (0: any),
--       samples per unit
-- Returns stored samples, then expected samples, global and micro batch size, relayed, passes and unit as they were declared
-- first;
-- or only 'ended'.
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then return {'ended'} end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'expected', ARGV[2], 'global_batch_size', ARGV[3], 'micro_batch_size', ARGV[4],
    'relayed', ARGV[5], 'passes', ARGV[6], 'unit', ARGV[7], 'stored', 0, 'bytes', 0, 'closed', 0, 'pass', 0,
    'selected', -1, 'ended', 0, 'attempt_floor', redis.call('HGET', KEYS[4], 'attempt_floor') or 0)
  redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1])
end
return redis.call('HMGET', KEYS[1], 'stored', 'expected', 'global_batch_size', 'micro_batch_size', 'relayed', 'passes', 'unit')
