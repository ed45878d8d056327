-- Add what one process counted to the totals of its deployment, once, however often the call is repeated.
--
-- KEYS: the totals (hash), the types that are counted by name (set), the number of the process's last addition (string).
-- ARGV: number of this addition, life of the totals in ms, life of that number in ms, most types that are counted by name; then for
--       each addition: field, event type or '' (appended to the field), by how much.
-- Reply: 1 when it was added now, 0 when it had been before.
if tonumber(redis.call('GET', KEYS[3]) or 0) >= tonumber(ARGV[1]) then
  return 0
end

local function counted_as(type)
  if redis.call('SISMEMBER', KEYS[2], type) == 0 then
    if redis.call('SCARD', KEYS[2]) >= tonumber(ARGV[4]) then
      return 'other'
    end
    redis.call('SADD', KEYS[2], type)
  end
  return type
end

for i = 5, #ARGV, 3 do
  local field, type, more = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  redis.call('HINCRBY', KEYS[1], type == '' and field or field .. ':' .. counted_as(type), more)
end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
