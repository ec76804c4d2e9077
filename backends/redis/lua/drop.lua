-- Takes a request back, whatever became of it. ARGV[2] name, [3] id, [4] '1'
-- where an attempt may still be on its way: none is obeyed any more.
local no = refused()
if no then return no end
local name, id = ARGV[2], ARGV[3]
allow_writing()
if ARGV[4] == '1' then call('HSET', P .. 's:' .. S, 'a' .. id, '999999999') end
if call('HEXISTS', P .. 's:' .. S, 'i' .. id) == 1 then
  drop(name, id)
  settle_name(name)
end
return {'ok'}
