-- Claim a slice of keys under one claim id, in one round trip.
--
-- Keyspace (every script of this folder):
--   key                          type    lifetime                 meaning
--   dedup:{deployment}:<key>     string  claim_px_ms / done_ttl   the claim of one event
-- Value, fields separated by '|':
--   P|digest|claim id|token|deadline ms|lease ms|owner|session|previous owner    processing
--   D|digest|owner                                                               done
-- All keys of a deployment share one hash slot, so that these scripts run on a cluster too.
--
-- KEYS: the claims' keys. ARGV: claim id, owner, session, lease ms, px ms, then one digest a key.
-- Reply, one element a key:
--   integer               won: the fencing token
--   'T|token|owner|session'  won by takeover from that owner, whose MongoDB session is named
--   'B|owner'             busy: somebody's lease is running
--   'D|owner'             done
--   'C|digest|owner'      conflict: the key is held with another digest
local claim_id, owner, session = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, px_ms = tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)

local function processing(digest, token, previous)
  return string.format('P|%s|%s|%.0f|%.0f|%.0f|%s|%s|%s', digest, claim_id, token, now_ms + lease_ms, lease_ms, owner, session, previous)
end

local reply = {}
for i, key in ipairs(KEYS) do
  local digest = ARGV[5 + i]
  local found = redis.call('SET', key, processing(digest, now_us, ''), 'NX', 'GET', 'PX', px_ms)
  if not found then
    reply[i] = now_us
  else
    local state, held, rest = string.match(found, '^([PD])|([^|]*)|(.*)$')
    if state and held ~= digest then
      local holder = state == 'D' and rest or string.match(rest, '^[^|]*|[^|]*|[^|]*|[^|]*|([^|]*)')
      reply[i] = 'C|' .. held .. '|' .. (holder or '')
    elseif state == 'D' then
      reply[i] = 'D|' .. rest
    else
      local by, token, deadline, lease, holder, their_session =
        string.match(rest or '', '^([^|]*)|(%d+)|(%d+)|(%d+)|([^|]*)|([^|]*)|')
      if by == claim_id then
        reply[i] = tonumber(token)
      elseif by and now_ms <= tonumber(deadline) and tonumber(deadline) <= now_ms + tonumber(lease) then
        reply[i] = 'B|' .. holder
      else -- the lease ran out, the clock moved, or the value is none of ours
        local next_token = math.max((tonumber(token) or 0) + 1, now_us)
        redis.call('SET', key, processing(digest, next_token, holder or ''), 'PX', px_ms)
        reply[i] = string.format('T|%.0f|%s|%s', next_token, holder or '', their_session or '')
      end
    end
  end
end
return reply
