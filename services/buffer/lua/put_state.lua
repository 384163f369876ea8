-- Stores a value if its revision is the expected one; the same write repeated is answered as the first was.
-- KEYS: state
-- ARGV: expected revision, value
-- Returns 'put', new revision; or 'conflict', present revision.
local revision, value = unpack(redis.call('HMGET', KEYS[1], 'revision', 'value'))
local present, expected = tonumber(revision or 0), tonumber(ARGV[1])
if present == expected + 1 and value == ARGV[2] then return {'put', present} end
if present ~= expected then return {'conflict', present} end
redis.call('HSET', KEYS[1], 'revision', expected + 1, 'value', ARGV[2])
return {'put', expected + 1}
