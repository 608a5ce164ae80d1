-- Reads a tenant's position, and the messages after a known one. fence.lua comes before this text.
--
-- KEYS[1] state, KEYS[2] log
-- ARGV[1] known epoch, '' for none    ARGV[2] known seq    ARGV[3] known id, '' when unknown
-- ARGV[4] '1' when the known position is a gateway's own, '0' when it is a browser's
-- ARGV[5] how many messages at most   ARGV[6] state ms
-- Result  {epoch, seq, id, messages, run}: id is '' when seq is 0; messages are the log's after the known seq, oldest first,
--         and empty unless the known epoch is the current one. A log that starts later than known seq + 1 has lost some.
--         run is the server's run id, by which a gateway knows that its subscriptions are held by the same process.

local known_epoch, known_seq, known_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local trusted, limit = ARGV[4] == '1', tonumber(ARGV[5])

local server = fence(ARGV[6])

local messages = {}
if epoch == known_epoch and seq > known_seq and limit > 0 then
  for _, entry in ipairs(redis.call('XRANGE', LOG, whole(known_seq + 1) .. '-0', '+', 'COUNT', limit)) do
    messages[#messages + 1] = entry[2][2]
  end
end

-- Did the counter go back and come forward again with other events (a failover the run id didn't show)? Then the same
-- (epoch, seq) names two events, and only a new epoch tells everybody. A browser's numbers prove nothing, though: they
-- would let anyone with a token restart everybody's epoch.
if trusted and epoch == known_epoch then
  local rewound = seq < known_seq
  if known_id ~= '' and seq == known_seq then
    rewound = id ~= known_id
  elseif known_id ~= '' and messages[1] then
    local entry_seq, previous = string.match(messages[1], '^%S+ (%d+) %S+ (%S+) ')
    rewound = tonumber(entry_seq) == known_seq + 1 and previous ~= known_id
  end
  if rewound then
    begin_epoch(server, ARGV[6])
    messages = {}
  end
end

return {epoch, seq, id, messages, server.run}
