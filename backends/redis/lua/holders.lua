-- The claims of others in conflict with a lock. ARGV[2] name, [3] the lock.
-- Returns id, lock, contended flag and token of each.
local no = refused()
if no then return no end
local x, reply = lock_at(ARGV[3], 1), {'ok'}
local flat = call('HGETALL', P .. 'g:' .. ARGV[2])
for i = 1, #flat, 2 do
  local e = claim(flat[i], flat[i + 1])
  if e.session ~= S and holds(e.session) and conflict(x, e) then
    for _, field in ipairs({e.id, e.spec, e.contended, e.token}) do reply[#reply + 1] = field end
  end
end
return reply
