-- Renew claims, and make those again that Redis forgot. Keyspace: claim.lua.
-- KEYS: the claims' keys. ARGV: px ms, then for each key: claim id, digest, token, lease ms, owner, session, previous owner.
-- Reply, one element a key: 1 held, 0 lost (another claim id holds it, or it is done).
local function read(key) -- a value of another type is nobody's
  local found = redis.pcall('GET', key)
  return type(found) == 'table' and '' or found
end

local px_ms = ARGV[1]
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local reply = {}
for i, key in ipairs(KEYS) do
  local at = 1 + (i - 1) * 7
  local claim_id, digest, token, lease_ms = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local found = read(key)
  if not found or string.match(found, '^P|[^|]*|([^|]*)|') == claim_id then
    local value = string.format('P|%s|%s|%s|%.0f|%s|%s|%s|%s|', digest, claim_id, token,
      now_ms + tonumber(lease_ms), lease_ms, ARGV[at + 5], ARGV[at + 6], ARGV[at + 7])
    redis.call('SET', key, value, 'PX', px_ms)
    reply[i] = 1
  else
    reply[i] = 0
  end
end
return reply
