-- Publishes one event. fence.lua comes before this text.
--
-- KEYS[1] state, KEYS[2] log, KEYS[3] the event's publish-once mark, KEYS[4] the tenant's channel
-- ARGV[1] event id            ARGV[2] event type           ARGV[3] body: the event's JSON without braces
-- ARGV[4] capacity: events in any second                   ARGV[5] reserve: tokens that must remain after this event
-- ARGV[6] log length          ARGV[7] log ms               ARGV[8] state ms             ARGV[9] mark ms
-- ARGV[10] the term of the relay's leader that sends the event; '' when no relay does
-- Result  {0, seq, receivers} published    {1, µs until it can succeed} throttled    {2, seq} published before
--         {3, term} refused: a leader of this later term has been here
--
-- Scripts do not roll back. So everything that can say no comes before the first write, the first write is the one
-- that can fail (a full server refuses only the first), and the mark is the last: a mark without its event would turn
-- the caller's retry into a loss.

local MARK, CHANNEL = KEYS[3], KEYS[4]
local SECOND, DIGITS = 1000000, 16
-- Microseconds by which a clock may tremble: time stands still for them, so that no second gets longer than the promise.
local TREMOR = 20000

-- Before the fence: an event of an older epoch is still a duplicate.
local marked = redis.call('GET', MARK)
if marked then
  return {2, tonumber(marked)}
end

local server = fence(ARGV[8])
-- On a Cluster the tenant's own node tells its subscribers alone, instead of every node telling every other.
local PUBLISH = server.mode == 'cluster' and 'SPUBLISH' or 'PUBLISH'

-- A leader that slept through its own succession may still hold rows that its successor has published, or folded into
-- others. From the moment a successor shows up, even if it is throttled, the tenant is closed to it.
local leader = tonumber(ARGV[10])
if leader and leader < term then
  return {3, term}
elseif leader and leader > term then
  redis.call('HSET', STATE, 'term', ARGV[10])
end

-- The bucket is the times at which its tokens were spent, 16 digits each (enough until 2286), oldest first. A token
-- comes back exactly one second after it was spent, so any second holds at most `capacity` events; a bucket that
-- refills evenly would let twice as many through.
local now = clock
local newest = tonumber(string.sub(bucket, -DIGITS)) or 0
if newest > clock + TREMOR then
  -- The clock went back (a failover to a slower one, or it was set). Tokens spent in the future count as spent now, and that is
  -- kept even if this event is refused: otherwise the tenant would wait for the old clock, and longer than a second.
  bucket = string.gsub(bucket, string.rep('%d', DIGITS), function(spent)
    return tonumber(spent) > clock and whole(clock) or spent
  end)
  redis.call('HSET', STATE, 'bucket', bucket)
elseif newest > clock then
  now = newest
end

-- `reserve` tokens remain after this event if the (capacity - reserve)-th newest was spent a second ago: one look, whatever
-- the capacity.
local capacity, reserve = tonumber(ARGV[4]), tonumber(ARGV[5])
local from = #bucket - (capacity - reserve) * DIGITS + 1
if from >= 1 then
  local spent = tonumber(string.sub(bucket, from, from + DIGITS - 1))
  if now - spent < SECOND then
    -- By the clock, for the caller waits by a clock.
    return {1, spent + SECOND - clock}
  end
end

-- The right to a channel is separate from the right to keys, and publishing comes after the first write.
if not redis.acl_check_cmd(PUBLISH, CHANNEL, '') then
  return redis.error_reply('NOPERM no permission to publish to the channel')
end

local previous = id == '' and '-' or id
seq = seq + 1
id = ARGV[1]
bucket = string.sub(bucket .. whole(now), -capacity * DIGITS)
-- The caller made the JSON; only the number is added. (cjson would turn 1500.00 into 1500.)
local message = table.concat({epoch, whole(seq), id, previous, ARGV[2], whole(now)}, ' ')
  .. '\n{"seq":' .. whole(seq) .. ',' .. ARGV[3] .. '}'

redis.call('XADD', LOG, 'MAXLEN', '=', ARGV[6], whole(seq) .. '-0', 'm', message)
redis.call('PEXPIRE', LOG, ARGV[7])
redis.call('HSET', STATE, 'seq', whole(seq), 'id', id, 'bucket', bucket, 'replid', server.replid)
redis.call('PEXPIRE', STATE, ARGV[8])
local receivers = redis.call(PUBLISH, CHANNEL, message)
redis.call('SET', MARK, whole(seq), 'PX', ARGV[9])
return {0, seq, receivers}
