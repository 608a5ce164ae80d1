-- Reference billing tables: what the reference API writes, and an example of what the two views of 0002 can stand on.
--
-- Every table is keyed by (tenant_id, id), and every foreign key carries the tenant: no row can point into another centre.

create schema if not exists billing;

create table billing.tenants (
    id                text primary key check (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    name              text not null,
    time_zone         text not null default 'Africa/Johannesburg',
    arrears_threshold numeric(12,2) not null default 500.00 check (arrears_threshold > 0)
);
comment on table billing.tenants is 'Childcare centres.';
comment on column billing.tenants.id is 'The tenant of tokens, Redis names and events.';
comment on column billing.tenants.name is 'What people call it.';
comment on column billing.tenants.time_zone is 'By whose calendar a day is today.';
comment on column billing.tenants.arrears_threshold is 'Overdue debt of a parent, in rand, from which dashboards are alerted.';

create table billing.parents (
    tenant_id          text not null references billing.tenants,
    id                 text not null,
    name               text not null,
    arrears_alerted_at timestamptz,
    primary key (tenant_id, id)
);
comment on table billing.parents is 'Who owes and pays: one account each.';
comment on column billing.parents.tenant_id is 'The centre.';
comment on column billing.parents.id is 'The account.';
comment on column billing.parents.name is 'As it is shown on dashboards.';
comment on column billing.parents.arrears_alerted_at is 'When the account crossed its threshold; null while it is below. What makes an alert one for each crossing.';

create table billing.children (
    tenant_id text not null,
    id        text not null,
    parent_id text not null,
    name      text not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, parent_id) references billing.parents
);
comment on table billing.children is 'For whom invoices are written.';
comment on column billing.children.tenant_id is 'The centre.';
comment on column billing.children.id is 'The child.';
comment on column billing.children.parent_id is 'Who pays.';
comment on column billing.children.name is 'As it is shown on dashboards.';

create table billing.invoices (
    tenant_id   text not null,
    id          text not null,
    number      text not null,
    parent_id   text not null,
    child_id    text not null,
    amount      numeric(12,2) not null check (amount > 0),
    amount_paid numeric(12,2) not null default 0 check (amount_paid between 0 and amount),
    status      text not null check (status in ('DRAFT', 'PENDING', 'OVERDUE', 'PAID', 'CANCELLED')),
    issued_on   date not null,
    due_on      date not null check (due_on >= issued_on),
    primary key (tenant_id, id),
    unique (tenant_id, number),
    foreign key (tenant_id, parent_id) references billing.parents,
    foreign key (tenant_id, child_id) references billing.children,
    check (status <> 'PAID' or amount_paid = amount)
);
comment on table billing.invoices is 'What parents are asked to pay.';
comment on column billing.invoices.tenant_id is 'The centre.';
comment on column billing.invoices.id is 'The invoice.';
comment on column billing.invoices.number is 'What people know it by; unique in the centre.';
comment on column billing.invoices.parent_id is 'Who pays it.';
comment on column billing.invoices.child_id is 'For whom.';
comment on column billing.invoices.amount is 'In rand.';
comment on column billing.invoices.amount_paid is 'How much of it has been paid; never more than the amount.';
comment on column billing.invoices.status is 'DRAFT, PENDING, OVERDUE, PAID or CANCELLED. Debt is what is open of PENDING and OVERDUE.';
comment on column billing.invoices.issued_on is 'By the centre''s calendar.';
comment on column billing.invoices.due_on is 'The last day on which it is not overdue.';

-- The debt of a centre without its years of paid invoices.
create index invoices_open on billing.invoices (tenant_id, parent_id) include (due_on, amount, amount_paid)
    where status in ('PENDING', 'OVERDUE');
-- Counts by status, from the index alone.
create index invoices_status on billing.invoices (tenant_id, status);

create table billing.payments (
    tenant_id       text not null,
    id              text not null,
    invoice_id      text not null,
    amount          numeric(12,2) not null check (amount > 0),
    received_at     timestamptz not null default now(),
    idempotency_key text,
    primary key (tenant_id, id),
    foreign key (tenant_id, invoice_id) references billing.invoices
);
comment on table billing.payments is 'Money that came in, each payment allocated to one invoice.';
comment on column billing.payments.tenant_id is 'The centre.';
comment on column billing.payments.id is 'The payment.';
comment on column billing.payments.invoice_id is 'What it was paid on.';
comment on column billing.payments.amount is 'In rand.';
comment on column billing.payments.received_at is 'When it was recorded.';
comment on column billing.payments.idempotency_key is 'The caller''s name for the request: asked again, the first answer is given and nothing is paid twice.';

-- Today's payments and the newest twenty.
create index payments_newest on billing.payments (tenant_id, received_at desc, id desc) include (amount);
create unique index payments_once on billing.payments (tenant_id, idempotency_key) where idempotency_key is not null;
