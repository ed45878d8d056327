-- Claim a slice of keys under one claim id, in one round trip.
--
-- Keyspace (every script of this folder):
--   key                          type    lifetime                 meaning
--   dedup:{deployment}:<key>     string  claim_px_ms / done_ttl   the claim of one event
-- Value, fields separated by '|':
--   P|digest|claim id|token|deadline ms|lease ms|owner|session|previous owner|previous session    processing
--   d, the digest's 16 bytes, owner                                                               done
--   D|digest|owner                                                                                done: any other digest, earlier releases
-- The previous ones are of whom it was taken over from; they make the answer to a repeated call the same as the first.
-- Any other value, of whatever type, is none of ours: it is taken over, and nobody's to renew, complete or release.
-- All keys of a deployment share one hash slot, so that these scripts run on a cluster too.
--
-- KEYS: the claims' keys. ARGV: claim id, owner, lease ms, px ms, then one digest a key, then one session a key or none.
-- Reply, one element a key:
--   integer               won: the fencing token
--   'T|token|owner|session'  won by takeover from that owner ('?': unknown), whose MongoDB session is named
--   'B|owner'             busy: somebody's lease is running
--   'D|owner'             done
--   'C|digest|owner'      conflict: the key is held with another digest
--   'd…'                  done or conflict: the mark as it is stored, for the caller to compare
local claim_id, owner = ARGV[1], ARGV[2]
local lease_ms, px_ms = tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)

-- A value of ours is 'P|' .. digest .. held_under(token) .. session .. '|' .. previous owner .. '|' .. previous session.
local function held_under(token)
  return string.format('|%s|%.0f|%.0f|%.0f|%s|', claim_id, token, now_ms + lease_ms, lease_ms, owner)
end

-- The stored value, after ours was set where there was none; a value of another type reads as an empty one.
local function found_or_set(key, value)
  local found = redis.pcall('SET', key, value, 'NX', 'GET', 'PX', px_ms)
  if type(found) ~= 'table' then
    return found
  end
  return string.find(found.err, 'WRONGTYPE', 1, true) and '' or error(found)
end

local MARK, MARK_HEAD = string.byte('d'), 17 -- app/claims/marks.py

local reply = {}
local stored = redis.call('MGET', unpack(KEYS)) -- one call tells a loser everything; false also for a value of another type
local newly_held = held_under(now_us)
local busy_rest, busy_reply -- the keys of a slice are mostly held by one claim, so what its value means is worked out once
for i, key in ipairs(KEYS) do
  local digest, session = ARGV[4 + i], ARGV[4 + #KEYS + i] or ''
  local found = stored[i] or found_or_set(key, 'P|' .. digest .. newly_held .. session .. '||')
  if not found then
    reply[i] = now_us
  elseif string.byte(found) == MARK and #found > MARK_HEAD then
    reply[i] = found
  else
    local state, held, rest = string.match(found, '^([PD])|([^|]*)|(.*)$')
    if state and held ~= digest then
      local holder = state == 'D' and rest or string.match(rest, '^[^|]*|[^|]*|[^|]*|[^|]*|([^|]*)')
      reply[i] = 'C|' .. held .. '|' .. (holder or '')
    elseif state == 'D' then
      reply[i] = 'D|' .. rest
    elseif rest and rest == busy_rest then
      reply[i] = busy_reply
    else
      local by, token, deadline, lease, holder, their_session, previous, previous_session =
        string.match(rest or '', '^([^|]*)|(%d+)|(%d+)|(%d+)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
      if by == claim_id then
        reply[i] = previous == '' and tonumber(token) or string.format('T|%s|%s|%s', token, previous, previous_session)
      elseif by and now_ms <= tonumber(deadline) and tonumber(deadline) <= now_ms + tonumber(lease) then
        busy_rest, busy_reply = rest, 'B|' .. holder
        reply[i] = busy_reply
      else -- the lease ran out, the clock moved, or the value is none of ours
        local next_token = math.max((tonumber(token) or 0) + 1, now_us)
        holder, their_session = holder or '?', their_session or ''
        redis.call('SET', key, 'P|' .. digest .. held_under(next_token) .. session .. '|' .. holder .. '|' .. their_session, 'PX', px_ms)
        reply[i] = string.format('T|%.0f|%s|%s', next_token, holder, their_session)
      end
    end
  end
end
return reply
