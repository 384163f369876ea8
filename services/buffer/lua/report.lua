-- Tells how far issued groups are; what the producer does not hold any more stays as it is.
-- KEYS: issues
-- ARGV: producer, 'generated' or 'failed', reason of a failure, then group ids
-- Returns how many records were changed.
local changed = 0
for i = 4, #ARGV do
  local record = redis.call('HGET', KEYS[1], ARGV[i])
  local stage, attempt, since, term, holder = string.match(record or '', '^(%a+) (%d+) ([%d.]+) ([%d.]+) (.*)$')
  if stage and stage ~= 'failed' and holder == ARGV[1] then
    local rest = ARGV[2] == 'failed' and ARGV[3] or holder
    redis.call('HSET', KEYS[1], ARGV[i], table.concat({ARGV[2], attempt, since, term, rest}, ' '))
    changed = changed + 1
  end
end
return {changed}
