-- Read. ARGV[1] inode number, [2] and [3] the first and last byte.
local what = kind(ARGV[1])
if not what then return {'noent'} end
if what == 'dir' then return {'isdir'} end
return {'ok', call('GETRANGE', P .. 'f:' .. ARGV[1], ARGV[2], ARGV[3])}
