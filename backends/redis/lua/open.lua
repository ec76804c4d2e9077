-- Begins a session. ARGV[2]: its lease in ms, [3] the longest hold that the
-- caller knows of, in ms, [4] the id of a new epoch, if one is to begin, [5] the
-- greatest stamp that the caller has seen, [6] its lock delay in ms. Returns the epoch, the ms until the
-- first lease ends, and until the grace period does.
allow_writing()
local here, same = check()

-- When somebody can have renewed a lease last, in a state that is gone. Where there
-- is no trace of sessions, nor anybody connected who had one, that was
-- before this process began: at once, if it is said to be new (docs/reliability.md).
-- One that was a replica began before others' leases ended.
local function last_renewal()
  local listening = tell('', 'new')
  if call('EXISTS', SESSIONS) == 1 or listening > 0 then return now end
  if call('GET', here.cluster and P .. 'new' or 'lockfs:new') == here.run then return 0 end
  return here.before == NEVER and now - here.uptime or now
end

if not same or not EPOCH then new_epoch(here, ARGV[4], tonumber(ARGV[3]), last_renewal()) end
note_hold(tonumber(ARGV[3]))
raise(tonumber(ARGV[5]))
extend(S, ARGV[2])
call('HSET', P .. 's:' .. S, 'p', EPOCH, 'd', ARGV[6])
return {'ok', EPOCH, next_end(), GRACE}
