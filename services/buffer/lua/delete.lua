-- Frees an episode that is empty, or whose newest pass is wholly acknowledged.
-- KEYS: episode, chunks, the episode's other keys and all its chunks
-- ARGV: length of the list of chunks, in bytes, when KEYS was made from it
-- Returns 'deleted', samples; or 'untrained', acknowledged steps, steps, pass; or 'open'; or 'changed'.
local stored, closed, pass, global_batch_size =
  unpack(redis.call('HMGET', KEYS[1], 'stored', 'closed', 'pass', 'global_batch_size'))
if not stored then return {'deleted', 0} end
if redis.call('STRLEN', KEYS[2]) ~= tonumber(ARGV[1]) then return {'changed'} end
if stored ~= '0' then
  if closed ~= '1' then return {'open'} end
  local acked = tonumber(redis.call('HGET', KEYS[1], 'acked:' .. pass) or 0)
  local steps = math.ceil(tonumber(stored) / tonumber(global_batch_size))
  if acked < steps then return {'untrained', acked, steps, tonumber(pass)} end
end
for _, key in ipairs(KEYS) do redis.call('UNLINK', key) end
return {'deleted', tonumber(stored)}
