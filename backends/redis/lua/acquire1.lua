-- Acquire where nobody has a claim: then nobody waits, for the name is settled.
do
  local id, mine, name = ARGV[3], P .. 's:' .. S, ARGV[2]
  local is = call('HMGET', mine, 'e', 'i' .. id, 'a' .. id)
  if is[1] and tonumber(is[1]) > now and not is[2] and not is[3] and ARGV[4] == '1'
      and call('EXISTS', P .. 'g:' .. name) == 0 then
    local token = string.format('%.0f', math.max(tonumber(call('GET', P .. 'seq') or '0') + 1, now_us))
    call('SET', P .. 'seq', token)
    call('HSET', P .. 'g:' .. name, id, string.sub(ARGV[6], 1, 34) .. '0' .. token)
    call('HSET', mine, 'i' .. id, name)
    return {'granted', token, '0'}
  end
end
