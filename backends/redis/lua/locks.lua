-- Functions cost each call that makes them, needed or not: what a script can
-- decide without them comes before this (acquire1.lua, change1.lua, release1.lua).

-- A session lives while its lease has not ended by this clock. One that has
-- ended never comes back: renewals extend live ones only.
local known = {}
local function alive(session)
  if known[session] == nil then
    local till = call('HGET', P .. 's:' .. session, 'e')
    known[session] = till and tonumber(till) > now or false
  end
  return known[session]
end

-- What a session has counts as long as it lives, and for its lock delay after
-- its lease has ended; not after a goodbye, which leaves no end of the lease.
local kept = {}
local function holds(session)
  if alive(session) then return true end
  if kept[session] == nil then
    local is = call('HMGET', P .. 's:' .. session, 'e', 'd')
    kept[session] = is[1] and is[2] and tonumber(is[1]) + tonumber(is[2]) > now or false
  end
  return kept[session]
end

local function extend(session, ttl)
  call('HSET', P .. 's:' .. session, 'e', string.format('%.0f', now + ttl))
  call('ZADD', SESSIONS, now + ttl, session)
end

-- The ms until the first lease of all ends, or a grace period; negative: it has.
local function next_end()
  local first = call('ZRANGE', SESSIONS, 0, 0, 'WITHSCORES')
  local left = first[2] and first[2] - now or 86400000
  return EPOCH and GRACE > 0 and math.min(left, GRACE) or left
end

-- Why the caller's request is not obeyed, or nil.
local function refused()
  if EPOCH ~= E then return {'new'} end
  if not alive(S) then return {'over'} end
end

local last_stamp
-- Stamps grow for ever, and past the clock: a lost counter can't repeat one.
local function stamp()
  last_stamp = last_stamp or tonumber(call('GET', P .. 'seq') or '0')
  last_stamp = math.max(last_stamp + 1, now_us)
  call('SET', P .. 'seq', string.format('%.0f', last_stamp))
  return last_stamp
end

-- Raises the counter to what somebody has seen.
local function raise(seen)
  if seen > tonumber(call('GET', P .. 'seq') or '0') then call('SET', P .. 'seq', number(seen)) end
end

local function owner(id) return string.match(id, '^(.*)/') end

-- Reads mode, hint and range of a spec from position at.
local function lock_at(spec, at)
  return {mode = string.sub(spec, at, at), hint = tonumber(string.sub(spec, at + 1, at + 1)),
    first = string.sub(spec, at + 2, at + 17), last = string.sub(spec, at + 18, at + 33)}
end

local SPEC = 34

local function claim(id, value)
  local e = lock_at(value, 1)
  e.id, e.session, e.spec = id, owner(id), string.sub(value, 1, SPEC)
  e.contended, e.token = string.sub(value, SPEC + 1, SPEC + 1), string.sub(value, SPEC + 2)
  return e
end

local function request(id, value)
  local e = lock_at(value, 1)
  e.id, e.session, e.spec, e.value = id, owner(id), string.sub(value, 1, SPEC), value
  e.yield = tonumber(string.sub(value, SPEC + 1, SPEC + 1))
  if #value > SPEC + 1 then
    e.held = {}
    for at = SPEC + 2, #value, SPEC do e.held[#e.held + 1] = lock_at(value, at) end
  end
  e.whole = e.mode == '2' and e.first == '0000000000000000' and e.last == '7fffffffffffffff'
  return e
end

local function conflict(a, b)
  return (a.mode == '2' or b.mode == '2') and a.first <= b.last and b.first <= a.last
end

local function conflict_any(e, locks)
  for _, l in ipairs(locks) do
    if conflict(e, l) then return true end
  end
  return false
end

local function drop_claim(name, id)
  call('HDEL', P .. 'g:' .. name, id)
  call('HDEL', P .. 's:' .. owner(id), 'i' .. id)
end

local function count(name, what, by)
  local key = P .. 'm:' .. name
  if call('HINCRBY', key, what, by) <= 0 then call('HDEL', key, what) end
end

local function count_request(name, x, by)
  count(name, 's' .. x.session, by)
  if x.held then count(name, 'h', by) end
  if x.yield > 0 then count(name, x.yield, by) end
end

local function drop_request(name, x)
  call('ZREM', P .. 'q:' .. name, x.id)
  call('HDEL', P .. 'w:' .. name, x.id)
  call('HDEL', P .. 's:' .. x.session, 'i' .. x.id)
  count_request(name, x, -1)
end

-- The state of a name: its claims, and so much of its queue as was looked at.
-- Claims of the dead are dropped here; what they held back is for settle.
local function load(name)
  local L = {name = name, granted = {}, queue = {}, known = {}, complete = false, dirty = false, hint = 0}
  local flat = call('HGETALL', P .. 'g:' .. name)
  for i = 1, #flat, 2 do
    local e = claim(flat[i], flat[i + 1])
    if holds(e.session) then
      L.granted[#L.granted + 1] = e
      L.hint = math.max(L.hint, e.hint)
    else
      drop_claim(name, e.id)
      L.dirty = true
    end
  end
  return L
end

-- The i-th request in the queue, or nil; read in growing pieces, so that one
-- who needs only the first pays only for the first.
local function waiting(L, i)
  while #L.queue < i and not L.complete do
    local have = #L.queue
    local more = math.min(math.max(4, have), 1000)
    local ids = call('ZRANGE', P .. 'q:' .. L.name, have, have + more - 1)
    L.complete = #ids < more
    local values = #ids > 0 and call('HMGET', P .. 'w:' .. L.name, unpack(ids)) or {}
    for k, id in ipairs(ids) do
      local x = request(id, values[k])
      if alive(x.session) then
        L.queue[#L.queue + 1] = x
      else
        drop_request(L.name, x)
        L.dirty = true
      end
    end
  end
  return L.queue[i]
end

-- Who waits for whom, of package queue. q is the queue; known keeps what ahead
-- returned, as long as nothing is taken out of q.
local ahead

-- Whether request j stands behind one of these, and does not go ahead of it.
local function behind(q, known, j, these)
  for k = 1, j - 1 do
    if these[k] and conflict(q[j], q[k]) and not ahead(q, known, j)[k] then return true end
  end
  return false
end

-- For the requests 1 to n whether each waits for what the owner behind
-- request x keeps.
local function waiting_for(q, known, x, n)
  local waits = {}
  for j = 1, q[x].held and n or 0 do
    if j ~= x then waits[j] = conflict_any(q[j], q[x].held) or behind(q, known, j, waits) end
  end
  return waits
end

-- For the requests before x whether x goes ahead of them.
ahead = function(q, known, x)
  known[x] = known[x] or waiting_for(q, known, x, x - 1)
  return known[x]
end

local function held_back(L, x)
  for _, e in ipairs(L.granted) do
    if e.session ~= x.session and conflict(x, e) then return true end
  end
  return false
end

-- Whether the request at index i stands behind another one.
local function behind_another(L, i)
  local x = waiting(L, i)
  for j = 1, i - 1 do
    if conflict(x, L.queue[j]) and not ahead(L.queue, L.known, i)[j] then return true end
  end
  return false
end

-- Blocked of package queue, for the request at index i.
local function blocked(L, i) return held_back(L, waiting(L, i)) or behind_another(L, i) end

-- Takes the request at index i out of the queue.
local function take_out(L, i)
  L.known = {}
  local x = table.remove(L.queue, i)
  drop_request(L.name, x)
  return x
end

-- Whether a claim is in use that request x yields to.
local function yields(L, x)
  if x.yield == 0 or L.hint < x.yield then return false end
  for _, e in ipairs(L.granted) do
    if e.session ~= x.session and e.hint >= x.yield and conflict(x, e) then return true end
  end
  return false
end

-- yields of package queue, for the request at index i.
local function gives_up(L, i)
  local x = waiting(L, i)
  return yields(L, x) or x.yield == 1 and behind_another(L, i)
end

-- Whether another session waits for something in conflict with claim e.
local function contended(L, e)
  if L.complete and #L.queue == 0 then return false end
  local all = call('ZCARD', P .. 'q:' .. L.name)
  if all == 0 or tonumber(call('HGET', P .. 'm:' .. L.name, 's' .. e.session) or '0') == all then return false end
  local i, y = 1, waiting(L, 1)
  while y do
    if y.session ~= e.session and conflict(y, e) then return true end
    i = i + 1
    y = waiting(L, i)
  end
  return false
end

-- Makes x a claim. finish is to follow.
local function grant(L, x)
  x.token = number(stamp())
  L.granted[#L.granted + 1] = x
  L.hint = math.max(L.hint, x.hint)
end

-- Writes a new claim down, when all who yield have gone.
local function finish(L, x)
  x.contended = contended(L, x) and '1' or '0'
  call('HSET', P .. 'g:' .. L.name, x.id, x.spec .. x.contended .. x.token)
  call('HSET', P .. 's:' .. x.session, 'i' .. x.id, L.name)
end

-- Whether a request may be in the queue that yields to a claim.
local function may_yield(L, counts)
  return counts[2] > 0 or L.hint >= 2 and counts[3] > 0 or L.hint >= 3 and counts[4] > 0
end

-- One pass over the queue, granting. It ends early where nothing behind can
-- be granted or yield: behind a write request on the whole name ('wall') only
-- those get ahead that have a Held, and only those yield that have a YieldTo
-- within the greatest hint; the counts say whether such are left.
local function grant_in_order(L, granted)
  if GRACE > 0 then return end
  local c = call('HMGET', P .. 'm:' .. L.name, 'h', '1', '2', '3')
  local counts = {tonumber(c[1] or '0'), tonumber(c[2] or '0'), tonumber(c[3] or '0'), tonumber(c[4] or '0')}
  local wall, i = false, 1
  while not wall or counts[1] > 0 or may_yield(L, counts) do
    local x = waiting(L, i)
    if not x then break end
    if x.held then counts[1] = counts[1] - 1 end
    if (wall and not x.held) or blocked(L, i) then
      wall = wall or x.whole
      i = i + 1
    else
      take_out(L, i)
      grant(L, x)
      granted[#granted + 1] = x
    end
  end
end

-- Sends each session one message about its requests: behind the epoch number, token
-- and contended flag of each, '0' and '0' where it yields.
local function tell_outcomes(outcomes)
  local order, parts = {}, {}
  for _, o in ipairs(outcomes) do
    local session = o.x.session
    if not parts[session] then
      order[#order + 1] = session
      parts[session] = {'g', EPOCH}
    end
    table.insert(parts[session], string.sub(o.x.id, #session + 2) .. ' ' .. o.token .. ' ' .. o.contended)
  end
  for _, session in ipairs(order) do tell(session, table.concat(parts[session], ' ')) end
end

-- Settle of package queue; tells those whom it lets in and those who yield.
local function settle(L)
  local granted, outcomes, again = {}, {}, true
  while again do
    again = false
    grant_in_order(L, granted)
    local i = 1
    while i <= #L.queue do
      if gives_up(L, i) then
        outcomes[#outcomes + 1] = {x = take_out(L, i), token = '0', contended = '0'}
        again = true
      else
        i = i + 1
      end
    end
  end
  for _, x in ipairs(granted) do
    finish(L, x)
    outcomes[#outcomes + 1] = {x = x, token = x.token, contended = x.contended}
  end
  tell_outcomes(outcomes)
  L.dirty = false
end

-- Settles a name from which something was taken.
local function settle_name(name)
  if call('EXISTS', P .. 'q:' .. name) == 1 then settle(load(name)) end
end

-- Drops an entry of session S, granted or waiting. Settling is to follow.
local function drop(name, id)
  local value = call('HGET', P .. 'w:' .. name, id)
  if value then
    drop_request(name, request(id, value))
  else
    drop_claim(name, id)
  end
end
