-- Leading the relay needs a right on our table: every login may take an advisory lock, but only a role that may update this row can say
-- which lock counts.

-- Billing never touches this table, so the lock is free within milliseconds.
set local lock_timeout = '3s';

-- The number that all earlier versions use: old and new relays share one lock.
alter table dashboard.relay add column lock_key bigint not null default 7165901434727518789;

comment on column dashboard.relay.lock_key is 'The advisory lock that the leader holds. A relay that finds the lock in the hands of a login without UPDATE on this table takes another one and writes it here.';
