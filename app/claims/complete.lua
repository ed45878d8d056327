-- Mark claims done after a majority commit, or after a majority ledger hit. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: claim id, owner, life of the mark in ms (0: delete instead of marking), then one digest a key.
-- A key that somebody else holds, or that is done already, stays as it is. Reply: how many were ours.
local function read(key) -- a value of another type is nobody's
  local found = redis.pcall('GET', key)
  return type(found) == 'table' and '' or found
end

local claim_id, owner, ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local ours = 0
for i, key in ipairs(KEYS) do
  local found = read(key)
  if not found or string.match(found, '^P|[^|]*|([^|]*)|') == claim_id then
    ours = ours + 1
    if ttl_ms ~= '0' then
      redis.call('SET', key, 'D|' .. ARGV[3 + i] .. '|' .. owner, 'PX', ttl_ms)
    elseif found then
      redis.call('DEL', key)
    end
  end
end
return ours
