-- Hands out a step, unless it is trained or another lessee holds it.
-- KEYS: episode, steps, the run's dead letters and usage
-- ARGV: step, pass, lessee, lease timeout in seconds, most attempts, what a dead letter of this step is called, shuffle seed
-- Returns 'leased', attempt; or 'missing'; or 'ended'; or 'trained', global step; or 'held', lessee, seconds left;
--         or 'dead', reason; or 'seed', the one that the episode's passes are shuffled by.
local episode, steps, dead, usage = unpack(KEYS)
local step, lessee, timeout, most = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local pass, ended, floor = unpack(redis.call('HMGET', episode, 'pass', 'ended', 'attempt_floor'))
if not pass then return {'missing'} end
if ended == '1' then return {'ended'} end
redis.call('HDEL', episode, '') -- as a full store lets a script begin
redis.call('HSETNX', episode, 'seed', ARGV[7])
local seed = redis.call('HGET', episode, 'seed')
if seed ~= ARGV[7] then return {'seed', seed} end
local seconds, microseconds = unpack(redis.call('TIME'))
local now = tonumber(seconds) + tonumber(microseconds) / 1e6

floor = tonumber(floor or 0)
local allowed = floor + most + tonumber(redis.call('HGET', episode, 'rewinds:' .. step) or 0) -- nothing went wrong with those
local record = redis.call('HGET', steps, step) or ''
local state, rest = string.match(record, '^(%a+) ?(.*)$')
local attempt = floor + 1
if state == 'trained' or state == 'acked' then return {'trained', rest} end
if state == 'rewound' then attempt = tonumber(rest) + 1 end -- what held it before may still be at work
if state == 'released' then
  local earlier, reason = string.match(rest, '^(%d+) (.*)$')
  attempt = tonumber(earlier) + 1
  if attempt > allowed then
    redis.call('HSET', dead, ARGV[6], reason)
    return {'dead', reason}
  end
elseif state == 'leased' then
  local earlier, since, term, holder = string.match(rest, '^(%d+) ([%d.]+) ([%d.]+) (.*)$')
  since, term = tonumber(since), tonumber(term)
  if now < since then since = now end -- the clock was set back
  local left = since + term - now
  attempt = tonumber(earlier)
  if left > 0 and holder ~= lessee then
    redis.call('HSET', steps, step, string.format('leased %d %.3f %.3f %s', attempt, since, term, holder))
    return {'held', holder, tostring(left)}
  end
  if left <= 0 then
    attempt = attempt + 1
    if attempt > allowed then
      local reason = string.format('leased %d times, and never acknowledged in time; last by %s', most, holder)
      redis.call('HSET', dead, ARGV[6], reason)
      return {'dead', reason}
    end
  end
end
redis.call('HSET', steps, step, string.format('leased %d %.3f %.3f %s', attempt, now, timeout, lessee))
if attempt > tonumber(redis.call('HGET', usage, 'attempts') or 0) then redis.call('HSET', usage, 'attempts', attempt) end
if tonumber(ARGV[2]) > tonumber(pass) then redis.call('HSET', episode, 'pass', ARGV[2]) end
return {'leased', attempt}
