-- Clears dead sessions away, a bounded piece of the work in each call.
-- With ARGV[2] 'end', ends session S first, and clears only that one.
-- Returns whether work is left, and the ms until the first lease of all ends.
local dead
if ARGV[2] == 'end' then
  call('ZADD', SESSIONS, 'XX', 0, S)
  call('HDEL', P .. 's:' .. S, 'e')
  dead = {S}
else
  dead = call('ZRANGEBYSCORE', SESSIONS, '-inf', now, 'LIMIT', 0, 8)
end

-- Clears a page of a session's entries away; with keep, of its requests only: the
-- claims are put down to be cleared later.
local function clear_page(session, key, budget, keep)
  local page, names = call('HRANDFIELD', key, budget, 'WITHVALUES'), {}
  for i = 1, #page, 2 do
    local field, name = page[i], page[i + 1]
    local id = string.sub(field, 2)
    if string.sub(field, 1, 1) ~= 'i' then
      if not keep or (field ~= 'e' and field ~= 'd') then call('HDEL', key, field) end
    elseif keep and call('HEXISTS', P .. 'g:' .. name, id) == 1 then
      call('HSET', P .. 'k:' .. session, id, name)
      call('HDEL', key, field)
    else
      drop(name, id)
      names[name] = true
    end
  end
  for name in pairs(names) do settle_name(name) end
end

-- Clears what a lock delay has kept.
local function clear_kept(session, budget)
  local key = P .. 'k:' .. session
  local page, names = call('HRANDFIELD', key, budget, 'WITHVALUES'), {}
  for i = 1, #page, 2 do
    drop_claim(page[i + 1], page[i])
    call('HDEL', key, page[i])
    names[page[i + 1]] = true
  end
  for name in pairs(names) do settle_name(name) end
end

local function clear(session, budget)
  local key = P .. 's:' .. session
  if not alive(session) and holds(session) then
    local is = call('HMGET', key, 'e', 'd')
    clear_page(session, key, budget, true)
    if call('HLEN', key) > 2 then return true end
    call('ZADD', SESSIONS, number(is[1] + is[2]), session)
    return false
  end
  call('HDEL', key, 'e') -- dead from here on
  known[session], kept[session] = false, false
  clear_page(session, key, budget, false)
  clear_kept(session, budget)
  if call('EXISTS', key, P .. 'k:' .. session) > 0 then return true end
  call('ZREM', SESSIONS, session)
  return false
end

local left = #dead == 8
for _, session in ipairs(dead) do
  left = clear(session, 200) or left
end
return {'ok', left and 1 or 0, next_end()}
