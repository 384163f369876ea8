-- Marks a leased step as trained; the attempt that did may say so again.
-- KEYS: episode, steps, the run's global steps and dead letters
-- ARGV: step, pass, attempt, global step, 'acked' or 'trained', the step's name in the run, what a dead letter of it is called
-- Returns 'acked', steps of the pass that are trained; or 'unleased'; or 'other', the global step that trained it;
--         or 'foreign', attempt, lessee; or 'expired', seconds ago; or 'taken', what the global step trained;
--         or 'late', the global step and the attempt that trained it.
local episode, steps, global_steps, dead = unpack(KEYS)
local step, pass, attempt, global_step, becomes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local record = redis.call('HGET', steps, step)
if not record then return {'unleased'} end
local state, rest = string.match(record, '^(%a+) (.*)$')
local counter = 'trained:' .. pass
if state == 'trained' or state == 'acked' then
  local held = redis.call('HGET', episode, 'attempt:' .. step)
  if held ~= attempt then return {'late', rest, held} end
  if rest ~= global_step then return {'other', rest} end
  return {'acked', tonumber(redis.call('HGET', episode, counter))}
end
if state == 'released' or state == 'rewound' then return {'unleased'} end
local held, since, term, holder = string.match(rest, '^(%d+) ([%d.]+) ([%d.]+) (.*)$')
if held ~= attempt then return {'foreign', held, holder} end
local seconds, microseconds = unpack(redis.call('TIME'))
local late = tonumber(seconds) + tonumber(microseconds) / 1e6 - tonumber(since) - tonumber(term)
if late > 0 then return {'expired', tostring(late)} end
local others = redis.call('ZRANGEBYSCORE', global_steps, global_step, global_step)
if #others > 0 and others[1] ~= ARGV[6] then return {'taken', others[1]} end
redis.call('HDEL', dead, ARGV[7]) -- as a full store lets a script begin
redis.call('HSET', steps, step, becomes .. ' ' .. global_step)
redis.call('HSET', episode, 'attempt:' .. step, attempt)
redis.call('ZADD', global_steps, global_step, ARGV[6])
return {'acked', redis.call('HINCRBY', episode, counter, 1)}
