-- The answer to a payment is kept with its key, and a time zone is one that PostgreSQL knows.

alter table billing.payments
    add column balance_after numeric(12,2),
    add column status_after text;
comment on column billing.payments.balance_after is 'What was left to pay on the invoice after it: part of the first answer. Null on payments of before.';
comment on column billing.payments.status_after is 'The status of the invoice after it: part of the first answer. Null on payments of before.';
comment on column billing.payments.idempotency_key is 'The caller''s name for the request: asked again, the first answer is given and nothing is paid twice. It belongs to one invoice and one amount.';

-- An unknown zone raises PostgreSQL's own error, which names it. NOT VALID: no row of before fails the migration.
alter table billing.tenants add constraint tenants_time_zone_is_known
    check (timestamp '2000-01-01 00:00' at time zone time_zone is not null) not valid;
