-- What release1.lua leaves: names that others wait for, or all of them, where the caller's epoch is over or in a grace period.
if not wanted[1] then
  local no = refused()
  if no then return no end
  allow_writing()
  for at = 2, #ARGV, 2 do
    drop_claim(ARGV[at], ARGV[at + 1])
    wanted[#wanted + 1] = ARGV[at]
  end
end
for _, name in ipairs(wanted) do settle_name(name) end
return {'ok'}
