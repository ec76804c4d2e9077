-- Change. ARGV[2] name; then for each change the claim's id, the number of
-- parts to keep, and for each its new id and lock. Returns token and
-- contended flag for each part, '' for parts of claims that are gone.
local no = refused()
if no then return no end
local name, reply, taken = ARGV[2], {'ok'}, dropped
local key, index = P .. 'g:' .. name, P .. 's:' .. S

-- The parts are there already where this is a repetition.
local function keep(old, id, spec)
  local value = call('HGET', key, id)
  if not value and old then
    value = spec .. old.contended .. old.token
    call('HSET', key, id, value)
    call('HSET', index, 'i' .. id, name)
  end
  local e = value and claim(id, value)
  reply[#reply + 1] = e and e.token or ''
  reply[#reply + 1] = e and e.contended or ''
end

local at = 3
while at <= #ARGV do
  local id, parts = ARGV[at], tonumber(ARGV[at + 1])
  local value = owner(id) == S and call('HGET', key, id)
  if value then
    taken = true
    drop_claim(name, id)
  end
  local old = value and claim(id, value)
  for k = at + 2, at + 2 * parts, 2 do keep(old, ARGV[k], ARGV[k + 1]) end
  at = at + 2 + 2 * parts
end
if taken then settle_name(name) end
return reply
