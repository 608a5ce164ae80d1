-- Revokes the tokens of a tenant or a user that were issued until now, and tells the gateways.
--
-- KEYS[1]  the revocations: a sorted set of whom, each with the moment of its latest kick in milliseconds
-- ARGV[1]  whom
-- ARGV[2]  how long a token can live, in milliseconds
-- ARGV[3]  the most revocations there may be
-- ARGV[4]  the channel on which gateways are told to read the set
-- Result: the moment of the kick in milliseconds; 0 when there are as many revocations as there may be
--
-- One entry for each tenant or user, however often it is kicked, and for no longer than a token can live: the set is bounded.

-- Redis' clock, not the caller's: a caller whose clock is ahead would shut everybody out until then.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Further ahead than two masters' clocks are apart is no moment of a kick; gateways ignore it too.
local AHEAD = 5000
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + AHEAD), '+inf')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[2]) - AHEAD))

local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not known and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  return 0
end
-- A clock that was set back must not shorten what was revoked.
local at = math.max(now, tonumber(known or 0))
redis.call('ZADD', KEYS[1], string.format('%.0f', at), ARGV[1])
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', tonumber(ARGV[2]) + AHEAD))
redis.call('PUBLISH', ARGV[4], 'kick')
return at
