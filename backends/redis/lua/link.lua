-- Link. ARGV[1] op, [2] old name, [3] new name.
return once(ARGV[1], function()
  local ino = find(ARGV[2])
  if not ino then return missing(ARGV[2]) end
  if kind(ino) == 'dir' then return 'isdir' end
  if find(ARGV[3]) then return 'exist' end
  local bad = bad_parent(ARGV[3])
  if bad then return bad end
  link(ARGV[3], ino)
  call('HINCRBY', P .. 'i:' .. ino, 'n', 1)
  return 'ok', ino
end)
