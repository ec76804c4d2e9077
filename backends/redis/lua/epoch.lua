-- What the server may have forgotten.
--
-- An epoch is a time in which the server's data were never older than what it
-- had answered. Keys:
--   epoch    string  its id, 16 characters; in a grace period ' ' and its end behind
--                    it, ms of server time
--   server   hash    run, replid: the process, and the history of its data, that
--                    the epoch began with; hold: the longest that a session
--                    may hold what it has after its last renewal, ms
--
-- The epoch is over where the key is gone, with the data, and where process or
-- history are others than those (a restart, a replica that was promoted). Every
-- connection begins with that check, and every renewal makes it. Without an
-- epoch, or with one that the caller does not know, nothing is
-- granted. The first session that comes begins a new one, with a grace period of
-- hold: in it those who live say anew what they have, and nobody is granted
-- anything; what nobody has said anew by its end, nobody has any more.

-- A server whose memory is full refuses a script's first write if that may need
-- memory, and lets on a script that has written. Renewals and what frees
-- locks must go on, so they begin with a write that needs none.
local function allow_writing() call('DEL', P .. 'none') end

local function tell(session, message) return call('PUBLISH', P .. 'c:' .. session, message) end

local function number(n) return string.format('%.0f', n) end

local SESSIONS, SERVER = P .. 'sessions', P .. 'server'
local NEVER = string.rep('0', 40) -- a history that there is not

-- Who this server is.
local function server()
  local text = call('INFO', 'server') .. call('INFO', 'replication')
  local function field(name) return string.match(text, '\n' .. name .. ':([^\r\n]*)') or '' end
  return {run = field('run_id'), replid = field('master_replid'), before = field('master_replid2'), cluster = field('redis_mode') == 'cluster',
    uptime = (tonumber(field('uptime_in_seconds')) or 0) * 1000}
end

-- Ends the epoch where another server began it. Returns who this one is, and
-- whether the epoch goes on.
local function check()
  local here, was = server(), call('HMGET', SERVER, 'run', 'replid')
  local same = was[1] == here.run and was[2] == here.replid
  if was[1] == here.run and not same and here.before == NEVER then
    -- Long without replicas, it has thrown away what it kept for them and
    -- begun a new history; a promoted one would know the history before.
    call('HSET', SERVER, 'replid', here.replid)
    same = true
  end
  if not same then call('DEL', P .. 'epoch') end
  return here, same
end

-- The epoch, or nil, and the ms that are left of its grace period: 0 when
-- locks are granted.
local function epoch()
  local value = call('GET', P .. 'epoch')
  if not value then return nil, 1 end
  local id, till = string.sub(value, 1, 16), tonumber(string.sub(value, 18))
  if till and till <= now then
    allow_writing()
    call('SET', P .. 'epoch', id)
    tell('', 'open') -- who waits sees to it that the names are settled
  end
  return id, till and math.max(till - now, 0) or 0
end

local EPOCH, GRACE = epoch()

-- Notes how long sessions may hold; a grace period lasts no less.
local function note_hold(hold)
  local was = tonumber(call('HGET', SERVER, 'hold') or '0')
  if hold <= was then return end
  call('HSET', SERVER, 'hold', number(hold))
  if GRACE > 0 and EPOCH then
    GRACE = GRACE + hold - was
    call('SET', P .. 'epoch', EPOCH .. ' ' .. number(now + GRACE))
  end
end

-- Begins an epoch. since is when the last session can have renewed elsewhere.
local function new_epoch(here, id, hold, since)
  hold = math.max(hold, tonumber(call('HGET', SERVER, 'hold') or '0'))
  local till = since + hold
  call('HSET', SERVER, 'run', here.run, 'replid', here.replid, 'hold', number(hold))
  EPOCH, GRACE = id, math.max(till - now, 0)
  call('SET', P .. 'epoch', GRACE > 0 and id .. ' ' .. number(till) or id)
  -- This clock may be behind the one by which the old leases were written down.
  for _, session in ipairs(call('ZRANGEBYSCORE', SESSIONS, '(' .. number(till), '+inf')) do
    if tonumber(call('HGET', P .. 's:' .. session, 'e') or '0') > till then
      call('HSET', P .. 's:' .. session, 'e', number(till))
    end
    call('ZADD', SESSIONS, number(till), session)
  end
end
