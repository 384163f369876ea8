-- Ends an episode that is empty, or whose every step of all passes is acknowledged; of a relayed one the samples stay.
-- KEYS: episode, list of chunks, list of made chunks, steps, the run's episodes, usage, ended and relaying,
--       then what goes when it ends: its issues, its other keys, and its chunks unless they stay
-- ARGV: episode id, length of the list of chunks and of made chunks, in bytes, when KEYS was made from them
-- Returns 'deleted', samples; or 'untrained', acknowledged steps, steps, the first pass that lacks some; or 'open'; or 'changed'.
local episode, chunks, made, steps, episodes, usage, ended, relaying = unpack(KEYS, 1, 8)
local stored, closed, pass, global_batch_size, relayed, selected, is_ended, bytes, made_samples, made_bytes, due =
  unpack(redis.call('HMGET', episode, 'stored', 'closed', 'pass', 'global_batch_size', 'relayed', 'selected', 'ended',
    'bytes', 'made', 'made_bytes', 'passes'))
if not stored or is_ended == '1' then return {'deleted', 0} end
if redis.call('STRLEN', chunks) ~= tonumber(ARGV[2]) or redis.call('STRLEN', made) ~= tonumber(ARGV[3]) then
  return {'changed'}
end
local keeps = relayed == '1' and stored ~= '0'
local total = keeps and tonumber(selected) or tonumber(stored)
local passes, all_steps = math.max(tonumber(pass) + 1, tonumber(due or 0)), 0
if total ~= 0 then
  if closed ~= '1' or total < 0 then return {'open'} end
  all_steps = math.ceil(total / tonumber(global_batch_size))
  local acked = {}
  local records = redis.call('HGETALL', steps)
  for i = 1, #records, 2 do
    local of = tonumber(string.match(records[i], '^p(%d+)'))
    if string.match(records[i + 1], '^acked ') then acked[of] = (acked[of] or 0) + 1 end
  end
  for of = 0, passes - 1 do
    if (acked[of] or 0) < all_steps then return {'untrained', acked[of] or 0, all_steps, of} end
  end
end
local lost, left_out = 0, 0
for _, record in ipairs(redis.call('HVALS', KEYS[9])) do
  if string.match(record, '^failed ') then left_out = left_out + 1 else lost = lost + 1 end
end
for i = 9, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('UNLINK', made, steps)
redis.call('HDEL', relaying, ARGV[1])
redis.call('HINCRBY', usage, 'samples', 0 - tonumber(made_samples or 0))
redis.call('HINCRBY', usage, 'bytes', 0 - tonumber(made_bytes or 0))
if closed == '1' then redis.call('HSET', ended, ARGV[1], table.concat({total, passes, all_steps, lost, left_out}, ' ')) end
if keeps then
  redis.call('HSET', episode, 'ended', 1)
else
  redis.call('UNLINK', episode, chunks)
  redis.call('ZREM', episodes, ARGV[1])
  redis.call('HINCRBY', usage, 'samples', 0 - tonumber(stored))
  redis.call('HINCRBY', usage, 'bytes', 0 - tonumber(bytes))
end
return {'deleted', tonumber(stored)}
