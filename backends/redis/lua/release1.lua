-- Release: drops claims of the caller's on many names. ARGV[2], [3] are the name and the id of the first, and so on. Each name is
-- settled as Change would; where nobody waits for any of them, without the functions that it takes.
local wanted = {}
do
  local mine, index = P .. 's:' .. S, {}
  local till = call('HGET', mine, 'e')
  if till and tonumber(till) > now and call('GET', P .. 'epoch') == E then
    for at = 2, #ARGV, 2 do
      local name, id = ARGV[at], ARGV[at + 1]
      if call('HDEL', P .. 'g:' .. name, id) == 1 then
        index[#index + 1] = 'i' .. id
        if call('EXISTS', P .. 'q:' .. name) == 1 then wanted[#wanted + 1] = name end
      end
    end
    if index[1] then call('HDEL', mine, unpack(index)) end
    if not wanted[1] then return {'ok'} end
  end
end
