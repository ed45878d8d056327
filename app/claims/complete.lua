-- Mark claims done after a majority commit, or after a majority ledger hit. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: claim id, life of the mark in ms (0: delete instead of marking), then one mark a key.
-- A key that somebody else holds, or that is done already, stays as it is. Reply: how many were ours.
local claim_id, ttl_ms = ARGV[1], ARGV[2]
local stored = redis.call('MGET', unpack(KEYS))
local ours = 0
for i, key in ipairs(KEYS) do
  local found = stored[i] or redis.call('EXISTS', key) == 1 and '' -- a value of another type is nobody's
  if not found or string.match(found, '^P|[^|]*|([^|]*)|') == claim_id then
    ours = ours + 1
    if ttl_ms ~= '0' then
      redis.call('SET', key, ARGV[2 + i], 'PX', ttl_ms)
    elseif found then
      redis.call('DEL', key)
    end
  end
end
return ours
