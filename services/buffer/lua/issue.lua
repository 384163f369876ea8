-- Hands out prompt groups of an episode.
-- KEYS: episode, groups, issues, the run's dead letters
-- ARGV: episode id, producer, timeout in seconds, most attempts, then group ids
-- Returns one word for each group: 'granted', 'stored', 'held', or 'dead' and its reason; or only 'missing', or 'closed'.
local episode, groups, issues, dead = unpack(KEYS)
local producer, timeout, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local closed = redis.call('HGET', episode, 'closed')
if not closed then return {'missing'} end
if closed == '1' then return {'closed'} end
local seconds, microseconds = unpack(redis.call('TIME'))
local now = tonumber(seconds) + tonumber(microseconds) / 1e6

local function issue(group)
  if redis.call('ZSCORE', groups, group) then return 'stored' end
  local attempt, record = 1, redis.call('HGET', issues, group)
  if record then
    local stage, earlier, since, term, rest = string.match(record, '^(%a+) (%d+) ([%d.]+) ([%d.]+) (.*)$')
    if now < tonumber(since) then -- the clock was set back: the term begins again, once
      since = string.format('%.3f', now)
      redis.call('HSET', issues, group, table.concat({stage, earlier, since, term, rest}, ' '))
    end
    local expired = tonumber(since) + tonumber(term) <= now
    if stage ~= 'failed' and not expired then
      if rest ~= producer then return 'held' end
      return 'granted'
    end
    attempt = tonumber(earlier) + 1
    if attempt > tonumber(most) then
      local reason = rest
      if stage ~= 'failed' then
        reason = string.format('issued %d times, and never stored in time; last to %s', most, rest)
      end
      redis.call('HSET', issues, group, table.concat({'failed', earlier, since, term, reason}, ' '))
      redis.call('HSET', dead, 'episode ' .. ARGV[1] .. ' group ' .. group, reason)
      return 'dead ' .. reason
    end
  end
  redis.call('HSET', issues, group, string.format('issued %d %.3f %.3f %s', attempt, now, timeout, producer))
  return 'granted'
end

local answer = {}
for i = 5, #ARGV do answer[i - 4] = issue(ARGV[i]) end
return answer
