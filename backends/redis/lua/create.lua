-- Create. ARGV[1] op, [2] name, [3] inode number, [4] on: the attributes.
return once(ARGV[1], function()
  local name, ino = ARGV[2], ARGV[3]
  if find(name) then return 'exist' end
  local bad = bad_parent(name)
  if bad then return bad end
  for i, field in ipairs(FIELDS) do call('HSET', P .. 'i:' .. ino, field, ARGV[3 + i]) end
  link(name, ino)
  return 'ok', ino
end)
