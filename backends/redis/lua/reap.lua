-- Clears dead sessions away, a bounded piece of the work in each call.
-- With ARGV[2] 'end', ends session S first, and clears only that one.
-- Returns whether work is left, and the ms until the first lease of all ends.
local dead
if ARGV[2] == 'end' then
  call('ZADD', SESSIONS, 'XX', 0, S)
  dead = {S}
else
  dead = call('ZRANGEBYSCORE', SESSIONS, '-inf', now, 'LIMIT', 0, 8)
end

local function clear(session, budget)
  local key = P .. 's:' .. session
  call('HDEL', key, 'e') -- dead from here on
  local page = call('HRANDFIELD', key, budget, 'WITHVALUES')
  local names = {}
  for i = 1, #page, 2 do
    local field, name = page[i], page[i + 1]
    if string.sub(field, 1, 1) == 'i' then
      drop(name, string.sub(field, 2))
      names[name] = true
    else
      call('HDEL', key, field)
    end
  end
  for name in pairs(names) do settle_name(name) end
  if call('EXISTS', key) == 1 then return true end
  call('ZREM', SESSIONS, session)
  return false
end

local left = #dead == 8
for _, session in ipairs(dead) do
  left = clear(session, 200) or left
end
return {'ok', left and 1 or 0, next_end()}
