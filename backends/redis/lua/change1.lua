-- Change that drops the only claim on a name, where nobody waits, or where those next in
-- line are write requests of one session on the whole name: what an exclusive flock hands on. They
-- are granted if nothing behind them could be granted or yield: it ends with them, or goes on
-- with such a request of another session and has none with Held or YieldTo.
local dropped = false
if #ARGV == 4 and ARGV[4] == '0' and string.sub(ARGV[3], 1, #S + 1) == S .. '/' then
  local id, mine, name = ARGV[3], P .. 's:' .. S, ARGV[2]
  local till = call('HGET', mine, 'e')
  if till and tonumber(till) > now then
    local g, q, w, m = P .. 'g:' .. name, P .. 'q:' .. name, P .. 'w:' .. name, P .. 'm:' .. name
    dropped = call('HDEL', g, id) == 1
    if not dropped then return {'ok'} end
    call('HDEL', mine, 'i' .. id)
    local line = call('ZRANGE', q, 0, 15)
    if not line[1] then return {'ok'} end

    local values, to, n, plain = call('HMGET', w, unpack(line)), string.match(line[1], '^(.*)/'), 0, true
    for i, next in ipairs(line) do
      plain = values[i] and #values[i] == 35 and string.sub(values[i], 1, 1) == '2'
        and string.sub(values[i], 3) == '00000000000000007fffffffffffffff0'
      if not plain or string.match(next, '^(.*)/') ~= to then break end
      n = i
    end
    local last = n == #line and n < 16
    if plain and n > 0 and (last or n < #line) and call('EXISTS', g) == 0 then
      local there, at = call('HGET', P .. 's:' .. to, 'e'), call('MGET', P .. 'epoch', P .. 'seq')
      local special = not last and call('HMGET', m, 'h', '1', '2', '3') or {}
      if there and tonumber(there) > now and at[1] == E and not (special[1] or special[2] or special[3] or special[4]) then
        if last then
          call('DEL', q, w, m)
        else
          call('ZREM', q, unpack(line, 1, n))
          call('HDEL', w, unpack(line, 1, n))
          if call('HINCRBY', m, 's' .. to, -n) <= 0 then call('HDEL', m, 's' .. to) end
        end
        local stamp, contended, message = tonumber(at[2] or '0'), last and '0' or '1', 'g ' .. E
        for i = 1, n do
          stamp = math.max(stamp + 1, now_us)
          local token = string.format('%.0f', stamp)
          call('HSET', g, line[i], string.sub(values[i], 1, 34) .. contended .. token)
          message = message .. ' ' .. string.sub(line[i], #to + 2) .. ' ' .. token .. ' ' .. contended
        end
        call('SET', P .. 'seq', string.format('%.0f', stamp))
        call('PUBLISH', P .. 'c:' .. to, message)
        return {'ok'}
      end
    end
  end
end
