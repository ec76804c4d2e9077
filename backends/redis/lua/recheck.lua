-- What became of requests; ARGV from 2: their ids. Returns for each token and
-- contended flag, 'q' and '' where it waits, '' and '' where it is gone.
if not alive(S) then return {'over'} end
local reply = {'ok'}
for i = 2, #ARGV do
  local name = call('HGET', P .. 's:' .. S, 'i' .. ARGV[i])
  local value = name and call('HGET', P .. 'g:' .. name, ARGV[i])
  local e = value and claim(ARGV[i], value)
  reply[#reply + 1] = e and e.token or name and 'q' or ''
  reply[#reply + 1] = e and e.contended or ''
end
return reply
