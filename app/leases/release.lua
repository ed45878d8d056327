-- Give a lease back. Keyspace: hold.lua. KEYS: the lease. ARGV: who asks. Reply: 1 it was theirs, 0 it was not.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
