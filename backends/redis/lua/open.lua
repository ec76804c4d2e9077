-- Begins a session. ARGV[2]: its lease in ms.
extend(S, ARGV[2])
return {'ok'}
