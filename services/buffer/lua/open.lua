-- Declares an episode unless it is there already.
-- KEYS: episode
-- ARGV: expected samples (0: dynamic), global batch size, micro batch size
-- Returns stored samples, then expected samples, global and micro batch size as they were declared first.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'expected', ARGV[1], 'global_batch_size', ARGV[2], 'micro_batch_size', ARGV[3],
    'stored', 0, 'closed', 0, 'pass', 0)
end
return redis.call('HMGET', KEYS[1], 'stored', 'expected', 'global_batch_size', 'micro_batch_size')
