-- Says anew what a session has, in a state that does not know it: 'begin', then
-- 'take' with a bounded part at a time, then 'end'. ARGV[2] is which, [3] the
-- number of this attempt: parts of another one are not obeyed. So nothing comes late
-- that the session has meanwhile given up.
local key, attempt = P .. 's:' .. S, ARGV[3]

-- begin: [4] lease, [5] hold, [6] id for a new epoch, [7] stamp, [8] lock delay, as in open.lua.
-- The caller's epoch is the last that it began to say things anew in.
-- Returns the epoch; 'more': to be repeated; 'done': all has been said in it.
local function begin()
  local here, same = check()
  local mine = call('HMGET', key, 'p', 'r')
  if same and E == EPOCH and mine[1] == E and not mine[2] and alive(S) then return {'done', E, next_end()} end
  if not same or not EPOCH or (GRACE == 0 and E ~= EPOCH) then
    -- In the last case a session comes from elsewhere that this state does not know.
    new_epoch(here, ARGV[6], tonumber(ARGV[5]), now)
    tell('', 'new')
  end
  note_hold(tonumber(ARGV[5]))
  -- Stamps that nobody alive has seen were given out in less than a lease.
  raise(tonumber(ARGV[7]) + tonumber(ARGV[4]) * 1000)
  -- What is written here of the session may be long given up.
  local page = call('HRANDFIELD', key, 200, 'WITHVALUES')
  for i = 1, #page, 2 do
    if string.sub(page[i], 1, 1) == 'i' then
      drop(page[i + 1], string.sub(page[i], 2))
    else
      call('HDEL', key, page[i])
    end
  end
  extend(S, ARGV[4])
  call('HSET', key, 'p', EPOCH, 'd', ARGV[8], 'r', attempt)
  return {#page >= 400 and 'more' or 'ok', EPOCH}
end

-- Ends a session that has what another one has.
local function finish_off(session)
  call('HDEL', P .. 's:' .. session, 'e')
  call('ZADD', SESSIONS, 'XX', 0, session)
  known[session] = false
  tell(session, 'over')
end

-- Takes a claim. Where another session has said that it has a lock in conflict with
-- it, a grant was lost before its time: the older one loses.
-- What another one has not said anew is not known to be true.
local function take_claim(name, id, value)
  local x = claim(id, value)
  local flat = call('HGETALL', P .. 'g:' .. name)
  for i = 1, #flat, 2 do
    local e = claim(flat[i], flat[i + 1])
    if e.session ~= S and conflict(x, e) then
      if not alive(e.session) or call('HGET', P .. 's:' .. e.session, 'p') ~= EPOCH then
        drop_claim(name, e.id)
      elseif tonumber(e.token) > tonumber(x.token) then
        return false
      else
        finish_off(e.session)
        drop_claim(name, e.id)
      end
    end
  end
  call('HSET', P .. 'g:' .. name, id, value)
  call('HSET', key, 'i' .. id, name)
  return true
end

-- Takes a request that waits, at its old place.
local function take_request(name, id, value, arrival)
  call('ZADD', P .. 'q:' .. name, arrival, id)
  call('HSET', P .. 'w:' .. name, id, value)
  call('HSET', key, 'i' .. id, name)
  count_request(name, request(id, value), 1)
end

if ARGV[2] == 'begin' then
  allow_writing()
  return begin()
end
local no = refused()
if no then return no end
if call('HGET', key, 'r') ~= attempt then return {'new'} end
if ARGV[2] == 'end' then
  allow_writing()
  call('HDEL', key, 'r')
  extend(S, ARGV[4])
  return {'ok', next_end()}
end
-- take: from [4] id, name, arrival ('' of a claim) and value.
for at = 4, #ARGV, 4 do
  local id, name, arrival, value = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if call('HEXISTS', key, 'i' .. id) == 1 then
    -- this part was obeyed before, and its answer lost
  elseif arrival ~= '' then
    take_request(name, id, value, arrival)
  elseif not take_claim(name, id, value) then
    finish_off(S)
    return {'over'}
  end
end
return {'ok'}
