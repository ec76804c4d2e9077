-- Stat. ARGV[1] name.
local ino = find(ARGV[1])
if not ino then return {missing(ARGV[1])} end
return info(ino)
