-- Forgets what a run remembers of episodes from one on, beside the episodes themselves.
-- KEYS: the run's global steps, ended, relaying, dead letters and usage
-- ARGV: the first episode to forget, the newest optimizer step to keep
-- Returns 'gone', optimizer steps forgotten; or 'within', the name and the optimizer step of an earlier episode's step that is
--         newer than that; or 'partly', those of a step of a forgotten episode that is not.
local global_steps, first, newest = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local later = redis.call('ZRANGEBYSCORE', global_steps, '(' .. newest, '+inf', 'WITHSCORES')
for i = 1, #later, 2 do
  if tonumber(string.match(later[i], '^%d+')) < first then return {'within', later[i], later[i + 1]} end
end
local last = redis.call('ZREVRANGEBYSCORE', global_steps, newest, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
if #last > 0 and tonumber(string.match(last[1], '^%d+')) >= first then return {'partly', last[1], last[2]} end

redis.call('ZREMRANGEBYSCORE', global_steps, '(' .. newest, '+inf')
-- what still computes one of the forgotten leases is not to acknowledge a later one: no lease has its name again
redis.call('HSET', KEYS[5], 'attempt_floor', redis.call('HGET', KEYS[5], 'attempts') or 0)
for at = 2, 4 do
  for _, name in ipairs(redis.call('HKEYS', KEYS[at])) do
    local id = tonumber(string.match(name, '%d+')) -- "3", or of a dead letter "episode 3 group g7"
    if id >= first then redis.call('HDEL', KEYS[at], name) end
  end
end
return {'gone', #later / 2}
