-- What all scripts for names and contents share.
--
-- KEYS[1] is the cluster's prefix. Keys:
--   d:<dir>  hash   last component -> inode number, of a directory by its name
--   i:<ino>  hash   m mode, u uid, g gid, n names, s size, a m c times (at, mt, ct, ns), l target
--   f:<ino>  string the contents, absent where empty
--   o:<op>   string what became of a change that was carried out, for a while:
--                   a repetition is answered from it
-- Invariants: an inode has as many names as n says and is gone without any
-- (a directory: n is 2, one name); d:<dir> is there only if dir is a
-- directory; s is the length of f or of l. The root is inode 1, its hash is
-- there only once it was changed. Numbers of 64 bits stay strings.

local call, P = redis.call, KEYS[1]
local ROOT = '1'
local MAX = 512 * 1024
local FIELDS = {'m', 'u', 'g', 'n', 's', 'at', 'mt', 'ct', 'l'}
local ROOT_ATTRS = {'17407', '0', '0', '2', '0', '0', '0', '0', ''} -- 041777

local function split(name)
  local dir, base = string.match(name, '^(.*)/([^/]*)$')
  if dir then return dir, base end
  return '', name
end

-- The inode number of a name, or nil.
local function find(name)
  if name == '' then return ROOT end
  local dir, base = split(name)
  return call('HGET', P .. 'd:' .. dir, base) or nil
end

-- The attributes of an inode in the order of FIELDS, or nil.
local function attrs(ino)
  local a = call('HMGET', P .. 'i:' .. ino, unpack(FIELDS))
  if a[1] then return a end
  return ino == ROOT and ROOT_ATTRS or nil
end

local function kind(ino)
  local a = attrs(ino)
  local t = a and math.floor(tonumber(a[1]) / 4096)
  return t == 4 and 'dir' or t == 10 and 'link' or t and 'file'
end

-- Why a name is not there: 'notdir' where a parent is no directory.
local function missing(name)
  while name ~= '' do
    local dir = split(name)
    local ino = find(dir)
    if ino then return kind(ino) == 'dir' and 'noent' or 'notdir' end
    name = dir
  end
  return 'noent'
end

local function info(ino)
  local a = attrs(ino)
  if not a then return {'noent'} end
  return {'ok', ino, unpack(a)}
end

-- nil where name's parent is a directory, else why not.
local function bad_parent(name)
  local dir = split(name)
  local ino = find(dir)
  if not ino then return missing(dir) end
  return kind(ino) ~= 'dir' and 'notdir' or nil
end

local function set(ino, ...)
  if ino == ROOT and call('EXISTS', P .. 'i:1') == 0 then
    for i, field in ipairs(FIELDS) do call('HSET', P .. 'i:1', field, ROOT_ATTRS[i]) end
  end
  call('HSET', P .. 'i:' .. ino, ...)
end

-- Takes a name away, and its inode with the last.
local function unlink(name, ino)
  local dir, base = split(name)
  call('HDEL', P .. 'd:' .. dir, base)
  if kind(ino) == 'dir' or call('HINCRBY', P .. 'i:' .. ino, 'n', -1) <= 0 then
    call('DEL', P .. 'i:' .. ino, P .. 'f:' .. ino)
  end
end

local function link(name, ino)
  local dir, base = split(name)
  call('HSET', P .. 'd:' .. dir, base, ino)
end

-- Carries a change out once: change returns the outcome and an inode number.
-- The reply is the outcome, with the inode's attributes where it is 'ok'.
local function once(op, change)
  local key = P .. 'o:' .. op
  local before = call('GET', key)
  local outcome, ino
  if before then
    outcome, ino = string.match(before, '^(%a+) ?(%d*)$')
  else
    outcome, ino = change()
    call('SET', key, outcome .. ' ' .. (ino or ''), 'PX', 30000)
  end
  if outcome ~= 'ok' or (ino or '') == '' then return {outcome} end
  return info(ino)
end
