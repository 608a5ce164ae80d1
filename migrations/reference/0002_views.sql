-- The two views that snapshots read. A real CrecheBooks database writes these over its own tables, with these columns.
--
-- Both are asked for one tenant at a time (`where tenant_id = …`), and must answer that from an index.

create view dashboard.metrics as
select
    tenant.id as tenant_id,
    debt.total_outstanding,
    debt.total_arrears,
    debt.accounts_in_arrears,
    received.payments_today,
    received.amount_received_today,
    statuses.invoices_by_status
from billing.tenants tenant
cross join lateral (
    select
        (now() at time zone tenant.time_zone)::date as date,
        ((now() at time zone tenant.time_zone)::date)::timestamp at time zone tenant.time_zone as midnight
) today
cross join lateral (
    select
        coalesce(sum(amount - amount_paid), 0)::numeric(12,2) as total_outstanding,
        coalesce(sum(amount - amount_paid) filter (where due_on < today.date), 0)::numeric(12,2) as total_arrears,
        count(distinct parent_id) filter (where due_on < today.date and amount > amount_paid) as accounts_in_arrears
    from billing.invoices
    where tenant_id = tenant.id and status in ('PENDING', 'OVERDUE')
) debt
cross join lateral (
    select count(*) as payments_today, coalesce(sum(amount), 0)::numeric(12,2) as amount_received_today
    from billing.payments
    where tenant_id = tenant.id and received_at >= today.midnight
) received
cross join lateral (
    select coalesce(jsonb_object_agg(status, invoices), '{}') as invoices_by_status
    from (select status, count(*) as invoices from billing.invoices where tenant_id = tenant.id group by status) counted
) statuses;

comment on view dashboard.metrics is 'One row a tenant: its figures now. Required by snapshots and metrics_updated.';
comment on column dashboard.metrics.tenant_id is 'text: the centre.';
comment on column dashboard.metrics.total_outstanding is 'numeric(12,2): what all parents owe, overdue or not.';
comment on column dashboard.metrics.total_arrears is 'numeric(12,2): the part of it that is overdue today, by the centre''s calendar.';
comment on column dashboard.metrics.accounts_in_arrears is 'bigint: how many parents owe overdue money.';
comment on column dashboard.metrics.payments_today is 'bigint: payments received since midnight, by the centre''s calendar.';
comment on column dashboard.metrics.amount_received_today is 'numeric(12,2): their sum.';
comment on column dashboard.metrics.invoices_by_status is 'jsonb: an object of counts, {"PENDING":12,"PAID":340}. Statuses without invoices may be left out.';

create view dashboard.recent_payments as
select
    payment.tenant_id,
    payment.id as payment_id,
    payment.amount,
    parent.name as parent_name,
    child.name as child_name,
    invoice.number as invoice_number,
    payment.received_at
from billing.payments payment
join billing.invoices invoice on invoice.tenant_id = payment.tenant_id and invoice.id = payment.invoice_id
join billing.parents parent on parent.tenant_id = invoice.tenant_id and parent.id = invoice.parent_id
join billing.children child on child.tenant_id = invoice.tenant_id and child.id = invoice.child_id;

comment on view dashboard.recent_payments is 'Payments; snapshots take a tenant''s newest 20 by received_at, payment_id.';
comment on column dashboard.recent_payments.tenant_id is 'text: the centre.';
comment on column dashboard.recent_payments.payment_id is 'text: the paymentId of payment_received, 1 to 128 characters.';
comment on column dashboard.recent_payments.amount is 'numeric(12,2): what was paid.';
comment on column dashboard.recent_payments.parent_name is 'text: who paid, 1 to 200 characters.';
comment on column dashboard.recent_payments.child_name is 'text: for whom, 1 to 200 characters.';
comment on column dashboard.recent_payments.invoice_number is 'text: the invoice it was paid on, 1 to 128 characters.';
comment on column dashboard.recent_payments.received_at is 'timestamptz: when it was received. Newest first is by this.';
