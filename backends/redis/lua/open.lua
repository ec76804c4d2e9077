-- Begins a session. ARGV[2]: its lease in ms.
call('ZADD', SESSIONS, now + ARGV[2], S)
return {'ok'}
