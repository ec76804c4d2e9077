-- Acquire. ARGV[2] name, [3] id, [4] attempt (from 1), [5] '1' to wait,
-- [6] the request.
-- An attempt is obeyed only if no later one, nor a drop, came before it: a
-- request that was held up on the way must not take what nobody waits for.
local name, id, attempt = ARGV[2], ARGV[3], tonumber(ARGV[4])
local no = refused()
if no then return no end
local before = call('HMGET', P .. 's:' .. S, 'i' .. id, 'a' .. id)
if before[2] and tonumber(before[2]) >= attempt then return {'late'} end
if attempt > 1 then call('HSET', P .. 's:' .. S, 'a' .. id, attempt) end
if before[1] then
  local value = call('HGET', P .. 'g:' .. name, id)
  if not value then return {'queued', next_end(), call('ZSCORE', P .. 'q:' .. name, id)} end
  local e = claim(id, value)
  return {'granted', e.token, e.contended}
end

local L = load(name)
if L.dirty then
  settle(L)
elseif #L.granted == 0 and call('EXISTS', P .. 'q:' .. name) == 1 then
  settle(L) -- a grace period has left it
end
local x = request(id, ARGV[6])

-- Whether the wait of the last in the queue and that of another would be for
-- each other.
local function deadlock(q, known, last)
  local waits = waiting_for(q, known, last, last)
  for i = 1, last - 1 do
    if waits[i] and waiting_for(q, known, i, last)[last] then return true end
  end
  return false
end

-- Whether it has to wait, as the last in the queue, whether for ever, and whether it gives up.
local function waits()
  local n, y = 1, waiting(L, 1)
  if not x.held then
    local back = held_back(L, x)
    if back and x.yield ~= 1 then return true, false, yields(L, x) end
    while y and not conflict(x, y) do
      n = n + 1
      y = waiting(L, n)
    end
    return back or y ~= nil, false, yields(L, x) or x.yield == 1 and y ~= nil
  end
  while waiting(L, n) do n = n + 1 end
  L.queue[n] = x
  local lost = deadlock(L.queue, L.known, n)
  local wait, up = lost or blocked(L, n), gives_up(L, n)
  table.remove(L.queue, n)
  L.known[n] = nil
  return wait, lost, up
end

local wait, lost, up = waits()
if L.dirty then -- the dead stood in the queue
  settle(L)
  wait, lost, up = waits()
end
if lost then return {'deadlock'} end
if not wait and GRACE > 0 and ARGV[5] ~= '1' then return {'grace', GRACE} end
if not wait and GRACE == 0 then
  grant(L, x)
  finish(L, x)
  if not (L.complete and #L.queue == 0) then settle(L) end -- some may yield to it
  return {'granted', x.token, x.contended}
end
if wait and up then return {'yield'} end
if ARGV[5] ~= '1' then return {'blocked'} end

local arrival = stamp()
call('ZADD', P .. 'q:' .. name, number(arrival), id)
call('HSET', P .. 'w:' .. name, id, ARGV[6])
call('HSET', P .. 's:' .. S, 'i' .. id, name)
count_request(name, x, 1)
local told = {}
for _, e in ipairs(L.granted) do
  if e.session ~= S and not told[e.session] and conflict(x, e) then
    told[e.session] = true
    tell(e.session, 'w ' .. number(arrival) .. ' ' .. name)
  end
end
return {'queued', next_end(), number(arrival)}
