-- Give claims back. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: claim id. A key that another claim id holds, or that is done, stays as it is.
-- Reply: how many were deleted.
local function read(key) -- a value of another type is nobody's
  local found = redis.pcall('GET', key)
  return type(found) == 'table' and '' or found
end

local gone = 0
for _, key in ipairs(KEYS) do
  local found = read(key)
  if found and string.match(found, '^P|[^|]*|([^|]*)|') == ARGV[1] then
    gone = gone + redis.call('DEL', key)
  end
end
return gone
