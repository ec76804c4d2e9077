-- Renews a session; ARGV[2]: its lease in ms, ARGV[3]: the renewal's number,
-- which comes back on the session's channel to show that messages arrive.
-- Returns how many listened, the ms until the first lease of all ends, the
-- longest hold of all sessions in ms, and a stamp that is greater than all before.
local _, same = check()
if not same then return {'new'} end
local no = refused()
if no then return no end
allow_writing()
extend(S, ARGV[2])
local heard = tell(S, 'h ' .. ARGV[3])
local last = math.max(tonumber(call('GET', P .. 'seq') or '0'), now_us)
return {'ok', heard, next_end(), tonumber(call('HGET', SERVER, 'hold') or '0'), last}
