-- Appends chunks, written before, to an episode: all or none, and once per request id.
-- KEYS: episode, requests, sample ids, groups, issues, list of chunks, the run's usage and dead letters, then the chunks
-- ARGV: request id, number of samples, names of the columns, records of the chunks, bytes, most samples and most bytes
--       that the run may have (0: any), JSON of {group id: place of its first sample}, JSON of all sample ids,
--       the episode's id
-- Returns 'put', first position, stored samples; or 'missing'; or 'closed', stored; or 'full', stored, expected;
--         or 'columns', the names that came first; or 'ragged', the episode's unit, of which they are not a multiple;
--         or 'duplicate', sample id; or 'expired';
--         or 'budget', samples and bytes in use; or 'room', if it was given no chunks: then it only looked.
local SLICE = 1000 -- unpack and the command's arguments live on a stack of limited size
local FIRST_CHUNK = 9

local episode, requests, sample_ids, groups, issues, chunks, usage, dead = unpack(KEYS, 1, FIRST_CHUNK - 1)
local function drop(answer) -- chunks that are not taken up; those of an earlier run of this script have no expiry
  for at = FIRST_CHUNK, #KEYS do
    if redis.call('TTL', KEYS[at]) >= 0 then redis.call('UNLINK', KEYS[at]) end
  end
  return answer
end
local stored, expected, closed, columns, bytes, unit =
  unpack(redis.call('HMGET', episode, 'stored', 'expected', 'closed', 'columns', 'bytes', 'unit'))
if not stored then return drop({'missing'}) end
local earlier = redis.call('HGET', requests, ARGV[1])
if earlier then
  local first, after = string.match(earlier, '(%d+) (%d+)')
  return drop({'put', tonumber(first), tonumber(after)})
end

local first, limit = tonumber(stored), tonumber(expected)
local count, size = tonumber(ARGV[2]), tonumber(ARGV[5])
local after = first + count
if limit > 0 and after > limit then return drop({'full', first, limit}) end
if closed == '1' then return drop({'closed', first}) end
if count % tonumber(unit) ~= 0 then return drop({'ragged', tonumber(unit)}) end
if columns and columns ~= ARGV[3] then return drop({'columns', columns}) end

local ids = cjson.decode(ARGV[9])
for from = 1, #ids, SLICE do
  local slice = {unpack(ids, from, math.min(from + SLICE - 1, #ids))}
  for i, known in ipairs(redis.call('SMISMEMBER', sample_ids, unpack(slice))) do
    if known == 1 then return drop({'duplicate', slice[i]}) end
  end
end

local used = redis.call('HMGET', usage, 'samples', 'bytes')
local samples_in_use, bytes_in_use = tonumber(used[1] or 0), tonumber(used[2] or 0)
local most_samples, most_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
if (most_samples > 0 and samples_in_use + count > most_samples) or (most_bytes > 0 and bytes_in_use + size > most_bytes) then
  return drop({'budget', samples_in_use, bytes_in_use})
end
if #KEYS < FIRST_CHUNK then return {'room'} end
if redis.call('EXISTS', unpack(KEYS, FIRST_CHUNK)) < #KEYS - FIRST_CHUNK + 1 then return drop({'expired'}) end

for at = FIRST_CHUNK, #KEYS do redis.call('PERSIST', KEYS[at]) end
for from = 1, #ids, SLICE do
  redis.call('SADD', sample_ids, unpack(ids, from, math.min(from + SLICE - 1, #ids)))
end
for group, place in pairs(cjson.decode(ARGV[8])) do
  redis.call('ZADD', groups, 'NX', first + place, group)
  redis.call('HDEL', issues, group)
  redis.call('HDEL', dead, 'episode ' .. ARGV[10] .. ' group ' .. group)
end
redis.call('APPEND', chunks, ARGV[4])
redis.call('HSET', requests, ARGV[1], first .. ' ' .. after)
redis.call('HSET', episode, 'stored', after, 'bytes', tonumber(bytes) + size, 'columns', ARGV[3])
redis.call('HSET', usage, 'samples', samples_in_use + count, 'bytes', bytes_in_use + size)
return {'put', first, after}
