-- dashboard.emit: the way in. Checks what the publisher library checks, in the same words, inside the caller's transaction.

-- Private: raises what every rule raises. The text begins with the field, as the library's errors do.
create function dashboard.refuse(field text, rule text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '%: %', field, rule using errcode = 'invalid_parameter_value', column = field;
end
$$;

-- Private: at most 64 characters of somebody else's text, none of which can start a new line.
create function dashboard.shown(raw text) returns text language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select regexp_replace(left(raw, 64), '[[:cntrl:]]', '?', 'g') $$;

-- Private: a string of 1 to `longest` characters.
create function dashboard.check_text(data jsonb, field text, longest int) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    value jsonb := data -> field;
begin
    if jsonb_typeof(value) is distinct from 'string' then
        perform dashboard.refuse('data.' || field, case when value is null then 'is missing' else 'must be a string' end);
    elsif char_length(value #>> '{}') not between 1 and longest then
        perform dashboard.refuse('data.' || field, format('must be 1 to %s characters', longest));
    end if;
end
$$;

-- Private: an amount in rand, at most two decimals.
create function dashboard.check_money(data jsonb, field text, may_be_negative boolean) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    value jsonb := data -> field;
    amount numeric;
begin
    if jsonb_typeof(value) is distinct from 'number' then
        perform dashboard.refuse('data.' || field, case when value is null then 'is missing'
            else 'must be a plain number with at most two decimals, like 1500.00' end);
    end if;
    amount := value::numeric;
    if scale(amount) > 2 then
        perform dashboard.refuse('data.' || field, 'must be a plain number with at most two decimals, like 1500.00');
    elsif abs(amount) > 9999999999.99 then
        perform dashboard.refuse('data.' || field, 'must lie between -9999999999.99 and 9999999999.99');
    elsif amount < 0 and not may_be_negative then
        perform dashboard.refuse('data.' || field, 'must not be negative');
    end if;
end
$$;

-- Private: a whole number from 0, written without decimals.
create function dashboard.check_count(value jsonb, field text, largest bigint) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(value) is distinct from 'number' then
        perform dashboard.refuse(field, case when value is null then 'is missing' else 'must be a whole number from 0' end);
    elsif scale(value::numeric) > 0 or value::numeric < 0 then
        perform dashboard.refuse(field, 'must be a whole number from 0');
    elsif value::numeric > largest then
        perform dashboard.refuse(field, format('must be at most %s', largest));
    end if;
end
$$;

-- Private: an object of counts.
create function dashboard.check_counts(data jsonb, field text, types boolean) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    value jsonb := data -> field;
    entry record;
begin
    if jsonb_typeof(value) is distinct from 'object' then
        perform dashboard.refuse('data.' || field,
            case when value is null then 'is missing' else 'must be an object of counts' end);
    end if;
    for entry in select each.key, each.value from jsonb_each(value) as each loop
        if types and entry.key not in ('payment_received', 'invoice_status_changed', 'arrears_alert', 'metrics_updated') then
            perform dashboard.refuse('data.' || field, 'must have types of events as keys');
        elsif char_length(entry.key) not between 1 and 64 then
            perform dashboard.refuse('data.' || field, 'must be 1 to 64 characters');
        end if;
        perform dashboard.check_count(entry.value, 'data.' || field, 9007199254740991);
    end loop;
end
$$;

-- Private: RFC 3339.
create function dashboard.check_timestamp(data jsonb, field text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    value jsonb := data -> field;
begin
    if value is null then
        perform dashboard.refuse('data.' || field, 'is missing');
    end if;
    if jsonb_typeof(value) <> 'string'
        or value #>> '{}' !~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$'
        -- Years that stay four digits in any zone; PostgreSQL knows no year 0.
        or left(value #>> '{}', 4) not between '0002' and '9998'
    then
        perform dashboard.refuse('data.' || field, 'must be an RFC 3339 timestamp, like 2026-11-23T08:15:00Z');
    end if;
    -- The 31st of February.
    perform (value #>> '{}')::timestamptz;
exception
    when datetime_field_overflow or invalid_datetime_format then
        perform dashboard.refuse('data.' || field, 'must be an RFC 3339 timestamp, like 2026-11-23T08:15:00Z');
end
$$;

-- Private: the fields there may be.
create function dashboard.check_fields(data jsonb, known text[]) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    unknown text;
begin
    select key into unknown from jsonb_object_keys(data) as key where key <> all (known) limit 1;
    if found then
        perform dashboard.refuse('data.' || dashboard.shown(unknown), 'is not a field here');
    end if;
end
$$;

create function dashboard.record(id text, tenant_id text, type text, data jsonb, happened_at timestamptz)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if id is null or id !~ '^[A-Za-z0-9_-]{1,64}$' or id = '-' then
        perform dashboard.refuse('id', 'must be 1 to 64 of [A-Za-z0-9_-] and not "-" alone');
    elsif tenant_id is null or tenant_id !~ '^[A-Za-z0-9_-]{1,64}$' then
        perform dashboard.refuse('tenant_id', 'must be 1 to 64 of [A-Za-z0-9_-]');
    elsif happened_at is null or happened_at not between '0002-01-01 00:00Z' and '9998-12-31 00:00Z' then
        perform dashboard.refuse('timestamp', 'must lie in the years 0002 to 9998');
    elsif jsonb_typeof(data) is distinct from 'object' then
        perform dashboard.refuse('data', 'must be an object');
    elsif octet_length(data::text) > 15360 then
        perform dashboard.refuse('data', 'must be at most 15360 bytes of JSON');
    end if;

    case type
        when 'payment_received' then
            perform dashboard.check_fields(data, '{paymentId,amount,parentName,childName,invoiceNumber}');
            perform dashboard.check_text(data, 'paymentId', 128);
            perform dashboard.check_money(data, 'amount', false);
            perform dashboard.check_text(data, 'parentName', 200);
            perform dashboard.check_text(data, 'childName', 200);
            perform dashboard.check_text(data, 'invoiceNumber', 128);
        when 'invoice_status_changed' then
            perform dashboard.check_fields(data, '{invoiceId,invoiceNumber,previousStatus,newStatus}');
            perform dashboard.check_text(data, 'invoiceId', 128);
            perform dashboard.check_text(data, 'invoiceNumber', 128);
            perform dashboard.check_text(data, 'previousStatus', 64);
            perform dashboard.check_text(data, 'newStatus', 64);
        when 'arrears_alert' then
            perform dashboard.check_fields(data, '{parentId,parentName,totalArrears,daysOverdue}');
            perform dashboard.check_text(data, 'parentId', 128);
            perform dashboard.check_text(data, 'parentName', 200);
            perform dashboard.check_money(data, 'totalArrears', false);
            perform dashboard.check_count(data -> 'daysOverdue', 'data.daysOverdue', 4294967295);
        when 'metrics_updated' then
            perform dashboard.check_fields(data, '{totalOutstanding,totalArrears,accountsInArrears,paymentsToday,amountReceivedToday,invoicesByStatus,asOf,condensed}');
            perform dashboard.check_money(data, 'totalOutstanding', true);
            perform dashboard.check_money(data, 'totalArrears', true);
            perform dashboard.check_count(data -> 'accountsInArrears', 'data.accountsInArrears', 9007199254740991);
            perform dashboard.check_count(data -> 'paymentsToday', 'data.paymentsToday', 9007199254740991);
            perform dashboard.check_money(data, 'amountReceivedToday', true);
            perform dashboard.check_counts(data, 'invoicesByStatus', false);
            perform dashboard.check_timestamp(data, 'asOf');
            if data ? 'condensed' then
                perform dashboard.check_counts(data, 'condensed', true);
            end if;
        else
            perform dashboard.refuse('type', 'must be one of payment_received, invoice_status_changed, arrears_alert, '
                || 'metrics_updated, not ' || coalesce('"' || dashboard.shown(type) || '"', 'null'));
    end case;

    insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at)
    values (id, tenant_id, type, data, happened_at);
end
$$;

comment on function dashboard.record(text, text, text, jsonb, timestamptz) is
    'Records an event under an id of the caller''s; for the publisher library. Everybody else calls dashboard.emit.';

create function dashboard.emit(tenant_id text, type text, data jsonb)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    -- A UUIDv7 (RFC 9562 §5.7): milliseconds over the first 48 bits of a random UUID, and its version set to 7.
    made uuid := encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                from 1 for 6),
            52, 1), 53, 1), 'hex')::uuid;
begin
    perform dashboard.record(made::text, tenant_id, type, data, clock_timestamp());
    return made;
end
$$;

comment on function dashboard.emit(text, text, jsonb) is
    'Tells a tenant''s dashboards what happened, when and only if the calling transaction commits. Returns the event''s id. '
    'Refuses what breaks a rule with an error (SQLSTATE 22023) that begins with the field''s name.';

-- An emitter needs EXECUTE on dashboard.emit and nothing else: the schema may be entered by all, and holds nothing open to them.
revoke all on all functions in schema dashboard from public;
revoke all on all tables in schema dashboard from public;
grant usage on schema dashboard to public;
