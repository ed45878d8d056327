-- Delete claims that nobody holds any more, without claiming them. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: one digest a key. Only a claim with that very digest whose lease is over (or whose clock moved)
-- is deleted. Reply: how many.
local function read(key) -- a value of another type is nobody's
  local found = redis.pcall('GET', key)
  return type(found) == 'table' and '' or found
end

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local gone = 0
for i, key in ipairs(KEYS) do
  local found = read(key)
  local digest, deadline, lease
  if found then
    digest, deadline, lease = string.match(found, '^P|([^|]*)|[^|]*|%d+|(%d+)|(%d+)|')
  end
  if digest == ARGV[i] and not (now_ms <= tonumber(deadline) and tonumber(deadline) <= now_ms + tonumber(lease)) then
    gone = gone + redis.call('DEL', key)
  end
end
return gone
