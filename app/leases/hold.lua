-- Take a lease, or renew it. Keyspace: dedup:{deployment}:=lease:<role>, a string, the holder; it lives as long as the lease.
-- KEYS: the lease. ARGV: who asks, life in ms. Reply: 1 held by who asked, 0 held by another.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
