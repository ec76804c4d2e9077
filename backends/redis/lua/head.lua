-- What all lock scripts share: package queue (backends/queue) in Lua.
--
-- KEYS[1] is the cluster's prefix, ARGV[1] the epoch that the caller is known
-- in (16 characters; lua/epoch.lua) and behind it its session. Keys:
--   epoch, server      see lua/epoch.lua
--   sessions    zset   session -> end of its lease, ms of server time: who is next
--   s:<session> hash   e -> the same end (this one decides); i<id> -> name of
--                      the entry; a<id> -> last attempt, of repeated requests;
--                      d -> its lock delay, ms; p -> the epoch it is known in; r -> the attempt to say
--                      anew what it has, while that is under way
--   k:<session> hash   id -> name of the claims that its lock delay keeps
--   seq         string the last stamp given out: arrivals, tokens
--   g:<name>    hash   id -> granted claim
--   q:<name>    zset   id -> arrival stamp of a request that waits
--   w:<name>    hash   id -> request that waits
--   m:<name>    hash   counts over the queue: h with Held, 1 to 3 by YieldTo,
--                      s<session> by session
-- An id is <session>/<number>. A lock is written as mode, hint (one digit
-- each), first and last byte (16 hex digits each: Lua's numbers end at 2^53);
-- claims add the contended flag and the token, requests YieldTo and Held.
--
-- Invariant: a name is settled when a script that changed it ends. So where
-- nobody alive has a claim, nobody alive waits; but for a grace period and what it
-- leaves, which is settled by those who wait when it is over.

local call, P = redis.call, KEYS[1]
local E, S = string.sub(ARGV[1], 1, 16), string.sub(ARGV[1], 17)
local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)
