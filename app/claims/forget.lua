-- Delete marks that MongoDB refutes: Redis says done, a majority says unfinished. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: one digest a key. Only a mark with that very digest is deleted. Reply: how many.
local function read(key) -- a value of another type is nobody's
  local found = redis.pcall('GET', key)
  return type(found) == 'table' and '' or found
end

local gone = 0
for i, key in ipairs(KEYS) do
  local found = read(key)
  if found and string.match(found, '^D|([^|]*)|') == ARGV[i] then
    gone = gone + redis.call('DEL', key)
  end
end
return gone
