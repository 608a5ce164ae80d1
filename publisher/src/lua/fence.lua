-- The beginning of every script of ours: the clock, the tenant's state, and the fence around its epoch.
--
-- KEYS[1] state  hash: epoch, run, replid, seq, id, bucket, term
-- KEYS[2] log    stream of messages, ids <seq>-0
--
-- An epoch is the life of one counter. Replication is asynchronous and a restart may lose the last second, so a server
-- that is not the one which issued the last seq could issue that seq again for another event, and browsers would drop
-- it as a duplicate. Hence a new epoch begins when there is no state, when the server's run id is not the state's, or when
-- its replication id is not: that one changes with every promotion, and so tells of a server that was succeeded, lost
-- writes to its successor, and is the master again. (It also changes when a master gets its first replica, or has had none
-- for an hour: more new epochs than needed, but never fewer.)

local STATE, LOG = KEYS[1], KEYS[2]

-- Redis' clock, not the caller's: publishers' clocks differ by more than the window we promise. Read once, since it
-- moves on within a script. Microseconds, exact in a Lua number until the year 2255.
local time = redis.call('TIME')
local clock = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Lua writes any integer from 1e14 on as 1.7e+15: every number that leaves the script as text goes through here.
local function whole(number)
  return string.format('%.0f', number)
end

local epoch, seq, id, bucket, term

local function begin_epoch(server, state_ms)
  -- Told apart from every other refusal: a gateway that may only read knows from it that it has read rightly.
  if not redis.acl_check_cmd('HSET', STATE, 'epoch', '') then
    error(redis.error_reply('NOPERM no permission to begin an epoch'))
  end
  epoch = string.sub(server.run, 1, 8) .. '-' .. whole(clock)
  seq, id = 0, ''
  -- The state first: on a full server it is refused, and then nothing has been lost yet; a DEL would have passed.
  redis.call('HSET', STATE, 'epoch', epoch, 'run', server.run, 'replid', server.replid, 'seq', '0', 'id', '')
  redis.call('PEXPIRE', STATE, state_ms)
  -- The old entries have other identities, and XADD refuses 1-0 under an old top. The bucket and the term stay: neither
  -- the limit nor the relay's leaders know epochs.
  redis.call('DEL', LOG)
end

-- Reads the state into the locals above, beginning a new epoch where needed. Returns the server: its run id, its replication
-- id, and its mode, `cluster` for a node of one. A slot that moves to another node of a Cluster takes its state along under
-- the old node's ids, so that moving is the beginning of an epoch as well: more than needed, but never less.
local function fence(state_ms)
  -- One INFO of both sections takes Redis twice as long as two.
  local info, replication = redis.call('INFO', 'server'), redis.call('INFO', 'replication')
  local server = {
    run = string.match(info, 'run_id:(%w+)'),
    replid = string.match(replication, 'master_replid:(%w+)'),
    mode = string.match(info, 'redis_mode:(%w+)'),
  }
  local state = redis.call('HMGET', STATE, 'epoch', 'run', 'seq', 'id', 'bucket', 'term', 'replid')
  epoch, seq, id = state[1], tonumber(state[3] or ''), state[4]
  bucket, term = state[5] or '', tonumber(state[6] or '') or 0
  -- A state of an older version has no replication id; publishing adds it.
  local replid = state[7] or server.replid
  if not (epoch and seq and id) or state[2] ~= server.run or replid ~= server.replid then
    begin_epoch(server, state_ms)
  end
  return server
end

