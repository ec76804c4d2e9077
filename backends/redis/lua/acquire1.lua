-- Acquire where nobody has a claim and nobody waits, in the caller's epoch and
-- outside a grace period: then the key is the epoch's id and no more.
do
  local id, mine, name = ARGV[3], P .. 's:' .. S, ARGV[2]
  local is = call('HMGET', mine, 'e', 'i' .. id, 'a' .. id)
  local at = call('MGET', P .. 'epoch', P .. 'seq')
  if is[1] and tonumber(is[1]) > now and not is[2] and not is[3] and ARGV[4] == '1'
      and at[1] == E and call('EXISTS', P .. 'g:' .. name, P .. 'q:' .. name) == 0 then
    local token = string.format('%.0f', math.max(tonumber(at[2] or '0') + 1, now_us))
    call('SET', P .. 'seq', token)
    call('HSET', P .. 'g:' .. name, id, string.sub(ARGV[6], 1, 34) .. '0' .. token)
    call('HSET', mine, 'i' .. id, name)
    return {'granted', token, '0'}
  end
end
