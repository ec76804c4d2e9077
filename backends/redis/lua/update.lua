-- Update. ARGV[1] op, [2] inode number, [3] size ('' to leave it), [4] new
-- permission bits ('' to leave them), then fields and values.
local ino, size = ARGV[2], ARGV[3]

local function resize()
  local key, want = P .. 'f:' .. ino, tonumber(size)
  local have = call('STRLEN', key)
  if want == 0 then
    call('DEL', key)
  elseif want < have then
    call('SET', key, call('GETRANGE', key, 0, want - 1))
  elseif want > have then
    call('SETRANGE', key, want - 1, '\0')
  end
  set(ino, 's', size)
end

return once(ARGV[1], function()
  local what = kind(ino)
  if not what then return 'noent' end
  if size ~= '' then
    if what == 'dir' then return 'isdir' end
    if tonumber(size) > MAX then return 'toolarge' end
    resize()
  end
  if ARGV[4] ~= '' then
    local mode = tonumber(attrs(ino)[1])
    set(ino, 'm', mode - mode % 4096 + ARGV[4])
  end
  if #ARGV > 4 then set(ino, unpack(ARGV, 5)) end
  return 'ok', ino
end)
