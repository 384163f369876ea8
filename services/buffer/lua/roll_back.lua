-- Forgets one episode: as `evict.lua`, but whatever became of it.
-- KEYS: episode, list of chunks, list of made chunks, the run's episodes and usage, then its other keys, and all its chunks
-- ARGV: episode id, length of the list of chunks and of made chunks, in bytes, when KEYS was made from them
-- Returns 'gone'; or 'changed'.
local episode, chunks, made, episodes, usage = unpack(KEYS, 1, 5)
local stored, bytes, ended, made_samples, made_bytes =
  unpack(redis.call('HMGET', episode, 'stored', 'bytes', 'ended', 'made', 'made_bytes'))
if redis.call('STRLEN', chunks) ~= tonumber(ARGV[2]) or redis.call('STRLEN', made) ~= tonumber(ARGV[3]) then
  return {'changed'}
end
-- first what frees: as a full store lets a script begin
redis.call('ZREM', episodes, ARGV[1])
for i = 6, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('UNLINK', episode, chunks, made)
if stored then
  local uncounted = ended == '1' -- its made samples went when it ended
  redis.call('HINCRBY', usage, 'samples', 0 - tonumber(stored) - (uncounted and 0 or tonumber(made_samples or 0)))
  redis.call('HINCRBY', usage, 'bytes', 0 - tonumber(bytes) - (uncounted and 0 or tonumber(made_bytes or 0)))
end
return {'gone'}
