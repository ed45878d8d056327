-- Give claims back. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: claim id. A key that another claim id holds, or that is done, stays as it is.
-- Reply: how many were deleted.
local gone = 0
for _, key in ipairs(KEYS) do
  local found = redis.call('GET', key)
  if found and string.match(found, '^P|[^|]*|([^|]*)|') == ARGV[1] then
    gone = gone + redis.call('DEL', key)
  end
end
return gone
