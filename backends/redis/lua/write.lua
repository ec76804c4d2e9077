-- Write. ARGV[1] op, [2] inode number, [3] offset (-1: the end), [4] data,
-- [5] modification time.
return once(ARGV[1], function()
  local ino, off, data = ARGV[2], tonumber(ARGV[3]), ARGV[4]
  local what, key = kind(ino), P .. 'f:' .. ino
  if not what then return 'noent' end
  if what == 'dir' then return 'isdir' end
  if off < 0 then off = call('STRLEN', key) end
  if off + #data > MAX then return 'toolarge' end
  if #data > 0 then call('SETRANGE', key, off, data) end
  set(ino, 's', call('STRLEN', key), 'mt', ARGV[5], 'ct', ARGV[5])
  return 'ok', ino
end)
