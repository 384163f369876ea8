-- Starts a lease's time again, also of an expired one that nobody else has taken since.
-- KEYS: steps
-- ARGV: step, attempt, lessee, lease timeout in seconds
-- Returns 'leased', attempt; or 'unleased'; or 'trained', global step; or 'foreign', attempt, lessee.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return {'unleased'} end
local state, rest = string.match(record, '^(%a+) (.*)$')
if state == 'released' or state == 'rewound' then return {'unleased'} end
if state ~= 'leased' then return {'trained', rest} end
local attempt, since, term, holder = string.match(rest, '^(%d+) ([%d.]+) ([%d.]+) (.*)$')
-- the lessee has a later attempt if one of its ranks was slow, and leased the step when the others' lease was over
if holder ~= ARGV[3] or tonumber(attempt) < tonumber(ARGV[2]) then return {'foreign', attempt, holder} end
local seconds, microseconds = unpack(redis.call('TIME'))
local now = tonumber(seconds) + tonumber(microseconds) / 1e6
redis.call('HDEL', KEYS[1], '') -- as a full store lets a script begin
redis.call('HSET', KEYS[1], ARGV[1], string.format('leased %s %.3f %.3f %s', attempt, now, tonumber(ARGV[4]), holder))
return {'leased', tonumber(attempt)}
