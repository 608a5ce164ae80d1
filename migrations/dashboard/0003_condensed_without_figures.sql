-- A backlog is condensed for a centre without figures too, and a moment that no dashboard can show never waits for the relay.

-- The constraint needs the table for a moment. Behind a long transaction this migration gives up, rather than hold up billing; run
-- it again.
set local lock_timeout = '3s';

-- PostgreSQL knows infinity and the year 294276; RFC 3339 does not. Refused rows may have such a moment, so that the relay can
-- refuse the rows of before this migration, and those of a restore. NOT VALID: no row of before fails the migration.
alter table dashboard.outbox add constraint outbox_moments check (
    fate is not distinct from 'refused'
    or (happened_at between '0002-01-01 00:00Z' and '9998-12-31 00:00Z'
        and recorded_at between '0002-01-01 00:00Z' and '9998-12-31 00:00Z'
        and (relayed_at is null or relayed_at between '0002-01-01 00:00Z' and '9998-12-31 00:00Z'))
) not valid;

-- The record of 0002, which also takes a metrics_updated whose six figures are null when it has `condensed`.
create or replace function dashboard.record(id text, tenant_id text, type text, data jsonb, happened_at timestamptz)
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
            -- Events that were condensed for a centre without figures: all six are null.
            if not (data ? 'condensed' and data @> '{"totalOutstanding":null,"totalArrears":null,"accountsInArrears":null,"paymentsToday":null,"amountReceivedToday":null,"invoicesByStatus":null}') then
                perform dashboard.check_money(data, 'totalOutstanding', true);
                perform dashboard.check_money(data, 'totalArrears', true);
                perform dashboard.check_count(data -> 'accountsInArrears', 'data.accountsInArrears', 9007199254740991);
                perform dashboard.check_count(data -> 'paymentsToday', 'data.paymentsToday', 9007199254740991);
                perform dashboard.check_money(data, 'amountReceivedToday', true);
                perform dashboard.check_counts(data, 'invoicesByStatus', false);
            end if;
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
