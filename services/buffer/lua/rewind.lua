-- Forgets the training of an episode's steps that a checkpoint does not hold.
-- KEYS: episode, steps, the run's global steps
-- ARGV: global step of the checkpoint, the episode's id
-- Returns 'rewound', how many are to be trained again; or 'acked', a step that was acknowledged after the checkpoint.
local records, undone = redis.call('HGETALL', KEYS[2]), {}
for i = 1, #records, 2 do
  local state, global_step = string.match(records[i + 1], '^(%a+) (%d+)$')
  if (state == 'trained' or state == 'acked') and tonumber(global_step) > tonumber(ARGV[1]) then
    if state == 'acked' then return {'acked', records[i] .. ', by optimizer step ' .. global_step} end
    undone[#undone + 1] = records[i]
  end
end
for _, step in ipairs(undone) do
  redis.call('HSET', KEYS[2], step, 'rewound ' .. redis.call('HGET', KEYS[1], 'attempt:' .. step))
  redis.call('HINCRBY', KEYS[1], 'rewinds:' .. step, 1) -- that attempt does not count
  redis.call('ZREM', KEYS[3], ARGV[2] .. ' ' .. step)
  redis.call('HINCRBY', KEYS[1], 'trained:' .. string.match(step, '^p(%d+)'), -1)
end
return {'rewound', #undone}
