-- Remove. ARGV[1] op, [2] name, [3] '1' for a directory.
return once(ARGV[1], function()
  local name = ARGV[2]
  local ino = find(name)
  if not ino then return missing(name) end
  local dir = kind(ino) == 'dir'
  if ARGV[3] == '1' then
    if not dir then return 'notdir' end
    if name == '' or call('EXISTS', P .. 'd:' .. name) == 1 then return 'notempty' end
  elseif dir then
    return 'isdir'
  end
  unlink(name, ino)
  return 'ok'
end)
