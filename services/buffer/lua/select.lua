-- Makes the training set of a relayed episode, once.
-- KEYS: episode, selection, list of made chunks, the run's relaying, the run's usage, then the chunks of made samples,
--       then the episodes that the set refers to
-- ARGV: episode id, selected samples, references, records of the made chunks, made samples, their bytes,
--       number of chunks, ids of the episodes that it refers to (in one string),
--       most samples and most bytes that the run may have (0: any), then for each such episode one more than the largest position
-- Returns 'selected', selected samples, global batch size; or 'missing'; or 'open'; or 'plain'; or 'other'; or 'expired';
--         or 'ragged', the episode's unit, of which they are not a multiple;
--         or 'budget', samples and bytes in use;
--         or 'gone', the place among the episodes of one that has no such sample.
local FIRST_CHUNK, FIRST_LIMIT = 6, 11
local episode, selection, made, relaying, usage = unpack(KEYS, 1, FIRST_CHUNK - 1)
local chunk_count = tonumber(ARGV[7])
local first_referred = FIRST_CHUNK + chunk_count
local function drop(answer) -- chunks that are not taken up; those of an earlier run of this script have no expiry
  for at = FIRST_CHUNK, first_referred - 1 do
    if redis.call('TTL', KEYS[at]) >= 0 then redis.call('UNLINK', KEYS[at]) end
  end
  return answer
end
local closed, relayed, selected, global_batch_size, ended =
  unpack(redis.call('HMGET', episode, 'closed', 'relayed', 'selected', 'global_batch_size', 'ended'))
local unit = redis.call('HGET', episode, 'unit')
if not closed then return drop({'missing'}) end
if relayed ~= '1' then return drop({'plain'}) end
if closed ~= '1' then return drop({'open'}) end
if tonumber(ARGV[2]) % tonumber(unit) ~= 0 then return drop({'ragged', tonumber(unit)}) end
if selected ~= '-1' then
  local same = selected == ARGV[2] and (ended == '1' or redis.call('GET', selection) == ARGV[3])
  if not same then return drop({'other'}) end
  return drop({'selected', tonumber(selected), tonumber(global_batch_size)})
end

for i = first_referred, #KEYS do
  local stored = redis.call('HGET', KEYS[i], 'stored')
  if not stored or tonumber(stored) < tonumber(ARGV[FIRST_LIMIT + i - first_referred]) then
    return drop({'gone', i - first_referred})
  end
end
local used = redis.call('HMGET', usage, 'samples', 'bytes')
local samples_in_use, bytes_in_use = tonumber(used[1] or 0), tonumber(used[2] or 0)
local most_samples, most_bytes = tonumber(ARGV[9]), tonumber(ARGV[10])
if chunk_count > 0 and ((most_samples > 0 and samples_in_use + tonumber(ARGV[5]) > most_samples)
    or (most_bytes > 0 and bytes_in_use + tonumber(ARGV[6]) > most_bytes)) then
  return drop({'budget', samples_in_use, bytes_in_use})
end
if chunk_count > 0 and redis.call('EXISTS', unpack(KEYS, FIRST_CHUNK, first_referred - 1)) < chunk_count then
  return drop({'expired'})
end

redis.call('HDEL', episode, '') -- as a full store lets a script begin
for at = FIRST_CHUNK, first_referred - 1 do redis.call('PERSIST', KEYS[at]) end
if chunk_count > 0 then redis.call('SET', made, ARGV[4]) end
redis.call('SET', selection, ARGV[3])
redis.call('HSET', episode, 'selected', ARGV[2], 'made', ARGV[5], 'made_bytes', ARGV[6])
redis.call('HINCRBY', usage, 'samples', ARGV[5])
redis.call('HINCRBY', usage, 'bytes', ARGV[6])
redis.call('HSET', relaying, ARGV[1], ARGV[8])
return {'selected', tonumber(ARGV[2]), tonumber(global_batch_size)}
