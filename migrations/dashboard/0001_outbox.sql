-- The outbox: what billing says in its own transactions, until the relay has told the dashboards.

create table dashboard.outbox (
    id          bigint generated always as identity primary key,
    tenant_id   text collate "C" not null check (tenant_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    event_id    text not null,
    type        text not null,
    data        jsonb not null,
    happened_at timestamptz not null,
    recorded_at timestamptz not null default clock_timestamp(),
    relayed_at  timestamptz,
    fate        text check (fate in ('published', 'condensed', 'refused')),
    check ((relayed_at is null) = (fate is null))
)
-- A queue turns over all the time: vacuum by rows that changed, not by a share of what is kept for a day.
with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000
);

comment on table dashboard.outbox is 'Events recorded by billing transactions. A row without a done mark waits for the relay.';
comment on column dashboard.outbox.id is 'Order of a tenant''s events that become visible together. Taken before commit: never a cursor.';
comment on column dashboard.outbox.tenant_id is 'The centre: 1 to 64 of [A-Za-z0-9_-].';
comment on column dashboard.outbox.event_id is 'Names the event for ever, on the wire too; publishing once is keyed by it.';
comment on column dashboard.outbox.type is 'payment_received, invoice_status_changed, arrears_alert or metrics_updated.';
comment on column dashboard.outbox.data is 'The payload, as dashboards will see it.';
comment on column dashboard.outbox.happened_at is 'The event''s timestamp.';
comment on column dashboard.outbox.recorded_at is 'When the row was written: what relay_lag_seconds is measured from.';
comment on column dashboard.outbox.relayed_at is 'The done mark; null while the row waits. Rows are deleted a day after it.';
comment on column dashboard.outbox.fate is 'What became of the row: published, condensed into a metrics_updated, or refused because it breaks a rule.';

-- What the relay looks at: pending rows only, a tenant's together, oldest first. Its size is the backlog, not the history.
create index outbox_pending on dashboard.outbox (tenant_id, id) where relayed_at is null;
-- What pruning looks at.
create index outbox_relayed on dashboard.outbox (relayed_at) where relayed_at is not null;

-- A row wakes the relay. The notification has no payload, so PostgreSQL sends one for each transaction, however many rows it
-- has. It takes a database-wide lock while it commits: where that shows, disable this trigger, and the relay finds rows by looking,
-- four times a second.
create function dashboard.wake() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    notify dashboard_outbox;
    return null;
end
$$;

create trigger wake after insert on dashboard.outbox for each statement execute function dashboard.wake();

create table dashboard.relay (
    one   boolean primary key default true check (one),
    term  bigint not null default 0,
    since timestamptz
);

insert into dashboard.relay default values;

comment on table dashboard.relay is 'One row: who leads the relay is decided by an advisory lock, and counted here.';
comment on column dashboard.relay.one is 'Makes a second row impossible.';
comment on column dashboard.relay.term is 'Grows with every leader. Redis refuses the events of a leader whose term has been succeeded.';
comment on column dashboard.relay.since is 'When the leader''s term began.';
