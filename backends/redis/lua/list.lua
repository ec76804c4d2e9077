-- List. ARGV[1] directory, [2] how many entries to describe at most. Returns
-- 'ok', 'all' or 'names', then component, inode number (and attributes) of each.
local ino = find(ARGV[1])
if not ino then return {missing(ARGV[1])} end
if kind(ino) ~= 'dir' then return {'notdir'} end
local key = P .. 'd:' .. ARGV[1]
local flat = call('HGETALL', key)
local all = #flat <= 2 * tonumber(ARGV[2])
local reply = {'ok', all and 'all' or 'names'}
for i = 1, #flat, 2 do
  local a = all and attrs(flat[i + 1])
  if a then
    reply[#reply + 1] = {flat[i], flat[i + 1], unpack(a)}
  elseif not all then
    reply[#reply + 1] = {flat[i], flat[i + 1]}
  end
end
return reply
