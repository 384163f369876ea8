-- Appends one chunk of samples to an episode, once per request id.
-- KEYS: episode, requests, sample ids, groups, chunks, chunk
-- ARGV: request id, number of samples, names of the columns, chunk record, chunk, number of groups,
--       then per group its first sample's place in the chunk and its id, then all sample ids
-- Returns 'put', first position, stored samples; or 'missing'; or 'closed', stored; or 'full', stored, expected;
--         or 'columns', the names that came first; or 'duplicate', sample id.
local SLICE = 1000 -- unpack and the command's arguments live on a stack of limited size

local episode, requests, sample_ids, groups, chunks, chunk = unpack(KEYS)
local stored, expected, closed, columns =
  unpack(redis.call('HMGET', episode, 'stored', 'expected', 'closed', 'columns'))
if not stored then return {'missing'} end
local earlier = redis.call('HGET', requests, ARGV[1])
if earlier then
  local first, after = string.match(earlier, '(%d+) (%d+)')
  return {'put', tonumber(first), tonumber(after)}
end

local first, limit = tonumber(stored), tonumber(expected)
local after = first + tonumber(ARGV[2])
if limit > 0 and after > limit then return {'full', first, limit} end
if closed == '1' then return {'closed', first} end
if columns and columns ~= ARGV[3] then return {'columns', columns} end

local first_group = 7
local first_id = first_group + 2 * tonumber(ARGV[6])
for from = first_id, #ARGV, SLICE do
  local slice = {unpack(ARGV, from, math.min(from + SLICE - 1, #ARGV))}
  for i, known in ipairs(redis.call('SMISMEMBER', sample_ids, unpack(slice))) do
    if known == 1 then return {'duplicate', slice[i]} end
  end
end

for from = first_id, #ARGV, SLICE do
  redis.call('SADD', sample_ids, unpack(ARGV, from, math.min(from + SLICE - 1, #ARGV)))
end
for at = first_group, first_id - 1, 2 do
  redis.call('ZADD', groups, 'NX', first + tonumber(ARGV[at]), ARGV[at + 1])
end
redis.call('SET', chunk, ARGV[5])
redis.call('APPEND', chunks, ARGV[4])
redis.call('HSET', requests, ARGV[1], first .. ' ' .. after)
redis.call('HSET', episode, 'stored', after, 'columns', ARGV[3])
return {'put', first, after}
