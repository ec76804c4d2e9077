-- Rename. ARGV[1] op, [2] old name, [3] new name, [4] '1' not to replace.
local old, new = ARGV[2], ARGV[3]

-- Makes room for new; why not, or nil.
local function replace(ino, there)
  local dir = kind(ino) == 'dir'
  if kind(there) == 'dir' then
    if not dir then return 'isdir' end
    if call('EXISTS', P .. 'd:' .. new) == 1 then return 'notempty' end
  elseif dir then
    return 'notdir'
  end
  unlink(new, there)
end

return once(ARGV[1], function()
  local ino = find(old)
  if not ino then return missing(old) end
  local there = find(new)
  if there and ARGV[4] == '1' then return 'exist' end
  if there == ino then return 'ok' end
  local bad = bad_parent(new)
  if bad then return bad end
  if kind(ino) == 'dir' and (old == '' or call('EXISTS', P .. 'd:' .. old) == 1 or
      string.sub(new, 1, #old + 1) == old .. '/') then
    return 'xdev'
  end
  bad = there and replace(ino, there)
  if bad then return bad end
  local dir, base = split(old)
  call('HDEL', P .. 'd:' .. dir, base)
  link(new, ino)
  return 'ok'
end)
