-- Evicts an ended episode from the history, unless a training set refers to it.
-- KEYS: episode, the run's episodes, usage and relaying, then its other keys and its chunks
-- ARGV: episode id
-- Returns 'evicted'; or 'kept'.
local episode, episodes, usage, relaying = unpack(KEYS, 1, 4)
local stored, bytes, ended = unpack(redis.call('HMGET', episode, 'stored', 'bytes', 'ended'))
if not stored then return {'evicted'} end
if ended ~= '1' then return {'kept'} end
for _, referred in ipairs(redis.call('HVALS', relaying)) do
  for id in string.gmatch(referred, '%S+') do
    if id == ARGV[1] then return {'kept'} end
  end
end
-- first what frees: as a full store lets a script begin
redis.call('ZREM', episodes, ARGV[1])
for i = 5, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('UNLINK', episode)
redis.call('HINCRBY', usage, 'samples', 0 - tonumber(stored))
redis.call('HINCRBY', usage, 'bytes', 0 - tonumber(bytes))
return {'evicted'}
