-- Renews a session; ARGV[2]: its lease in ms, ARGV[3]: the renewal's number,
-- which comes back on the session's channel to show that messages arrive.
-- Returns how many listened, and the ms until the first lease of all ends.
if not alive(S) then return {'over'} end
allow_writing()
extend(S, ARGV[2])
local heard = tell(S, 'h ' .. ARGV[3])
return {'ok', heard, next_end()}
