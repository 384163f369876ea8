-- Acknowledges the trained steps of an episode that a checkpoint holds.
-- KEYS: steps
-- ARGV: global step of the checkpoint
-- Returns how many became acknowledged.
redis.call('HDEL', KEYS[1], '') -- as a full store lets a script begin
local changed = 0
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
  local global_step = string.match(records[i + 1], '^trained (%d+)$')
  if global_step and tonumber(global_step) <= tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[1], records[i], 'acked ' .. global_step)
    changed = changed + 1
  end
end
return {changed}
