select metrics.tenant_id is not null as known,
    metrics.total_outstanding::numeric, metrics.total_arrears::numeric,
    metrics.accounts_in_arrears::bigint, metrics.payments_today::bigint,
    metrics.amount_received_today::numeric, metrics.invoices_by_status::jsonb,
    statement_timestamp() as as_of
from (values ($1)) asked (tenant_id)
left join dashboard.metrics metrics on metrics.tenant_id = asked.tenant_id
