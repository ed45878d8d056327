-- Delete marks that MongoDB refutes: Redis says done, a majority says unfinished. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: for each key what a mark of the digest begins with, in the short form and in the long one. Only a mark
-- with that very digest is deleted. Reply: how many.
local function read(key) -- a value of another type is nobody's
  local found = redis.pcall('GET', key)
  return type(found) == 'table' and '' or found
end

local gone = 0
for i, key in ipairs(KEYS) do
  local found = read(key)
  local short, long = ARGV[2 * i - 1], ARGV[2 * i]
  if found and (string.sub(found, 1, #short) == short or string.sub(found, 1, #long) == long) then
    gone = gone + redis.call('DEL', key)
  end
end
return gone
