-- Change that drops one claim, where nobody waits.
local dropped = false
if #ARGV == 4 and ARGV[4] == '0' and string.sub(ARGV[3], 1, #S + 1) == S .. '/' then
  local id, mine = ARGV[3], P .. 's:' .. S
  local till = call('HGET', mine, 'e')
  if till and tonumber(till) > now then
    dropped = call('HDEL', P .. 'g:' .. ARGV[2], id) == 1
    if not dropped then return {'ok'} end
    call('HDEL', mine, 'i' .. id)
    if call('EXISTS', P .. 'q:' .. ARGV[2]) == 0 then return {'ok'} end
  end
end
