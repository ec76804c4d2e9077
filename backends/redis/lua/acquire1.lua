-- Acquire, first attempt, in the caller's epoch and outside a grace period (then the key is the
-- epoch's id and no more), where nobody has a claim and nobody waits, or where a claim of
-- another session that lives is in the way of a request on the whole name without Held.
do
  local id, mine, name = ARGV[3], P .. 's:' .. S, ARGV[2]
  local is = call('HMGET', mine, 'e', 'i' .. id, 'a' .. id)
  local at = call('MGET', P .. 'epoch', P .. 'seq')
  if is[1] and tonumber(is[1]) > now and not is[2] and not is[3] and ARGV[4] == '1' and at[1] == E then
    local g, q, x = P .. 'g:' .. name, P .. 'q:' .. name, ARGV[6]
    local stamp = string.format('%.0f', math.max(tonumber(at[2] or '0') + 1, now_us))
    if call('EXISTS', g, q) == 0 then
      call('SET', P .. 'seq', stamp)
      call('HSET', g, id, string.sub(x, 1, 34) .. '0' .. stamp)
      call('HSET', mine, 'i' .. id, name)
      return {'granted', stamp, '0'}
    end

    if #x == 35 and string.sub(x, 3, 34) == '00000000000000007fffffffffffffff' then
      local write, yield = string.sub(x, 1, 1) == '2', tonumber(string.sub(x, 35))
      local claims, lives, wanted, inform, up = call('HGETALL', g), {[S] = true}, {}, {}, false
      for i = 1, #claims, 2 do
        local session = string.match(claims[i], '^(.*)/')
        if not lives[session] then
          local till = call('HGET', P .. 's:' .. session, 'e')
          lives[session] = till and tonumber(till) > now
          if not lives[session] then wanted = {} break end
        end
        if session ~= S and (write or string.sub(claims[i + 1], 1, 1) == '2') then
          if not inform[session] then wanted[#wanted + 1] = session end
          inform[session] = true
          up = up or yield > 0 and tonumber(string.sub(claims[i + 1], 2, 2)) >= yield
        end
      end
      -- One with YieldTo ByOpen gives up behind another request, too.
      if wanted[1] and (up or yield ~= 1 or call('EXISTS', q) == 0) then
        if up then return {'yield'} end
        if ARGV[5] ~= '1' then return {'blocked'} end
        call('SET', P .. 'seq', stamp)
        call('ZADD', q, stamp, id)
        call('HSET', P .. 'w:' .. name, id, x)
        call('HSET', mine, 'i' .. id, name)
        call('HINCRBY', P .. 'm:' .. name, 's' .. S, 1)
        if yield > 0 then call('HINCRBY', P .. 'm:' .. name, yield, 1) end
        for _, session in ipairs(wanted) do call('PUBLISH', P .. 'c:' .. session, 'w ' .. stamp .. ' ' .. name) end
        local first = call('ZRANGE', P .. 'sessions', 0, 0, 'WITHSCORES')
        return {'queued', first[2] and first[2] - now or 86400000, stamp}
      end
    end
  end
end
