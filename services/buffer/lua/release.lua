-- Gives a leased step back untrained.
-- KEYS: steps
-- ARGV: step, attempt, reason
-- Returns 'released'; or 'unleased'; or 'trained', global step; or 'foreign', attempt, lessee.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return {'unleased'} end
local state, attempt, rest = string.match(record, '^(%a+) (%d+) ?(.*)$')
if state == 'trained' or state == 'acked' then return {'trained', attempt} end
if state == 'rewound' then return {'unleased'} end
if attempt ~= ARGV[2] then return {'foreign', attempt, state == 'leased' and string.match(rest, '([^ ]*)$') or ''} end
if state == 'leased' then
  redis.call('HDEL', KEYS[1], '') -- as a full store lets a script begin
  redis.call('HSET', KEYS[1], ARGV[1], 'released ' .. attempt .. ' ' .. ARGV[3])
end
return {'released'}
