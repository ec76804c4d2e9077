-- The attributes of the inodes in ARGV; those that are gone are left out.
local reply = {'ok'}
for _, ino in ipairs(ARGV) do
  local a = attrs(ino)
  if a then reply[#reply + 1] = {ino, unpack(a)} end
end
return reply
