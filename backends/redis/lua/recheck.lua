-- What became of requests; ARGV from 2: their ids. It settles names that a grace
-- period has left. Returns for each token and contended flag, 'q' and '' where it
-- waits, '' and '' where it is gone.
local no = refused()
if no then return no end
local reply, settled = {'ok'}, {}
for i = 2, #ARGV do
  local name = call('HGET', P .. 's:' .. S, 'i' .. ARGV[i])
  if name and not settled[name] then
    settle_name(name)
    settled[name] = true
  end
  name = name and call('HGET', P .. 's:' .. S, 'i' .. ARGV[i]) -- settling may have ended it
  local value = name and call('HGET', P .. 'g:' .. name, ARGV[i])
  local e = value and claim(ARGV[i], value)
  reply[#reply + 1] = e and e.token or name and 'q' or ''
  reply[#reply + 1] = e and e.contended or ''
end
return reply
