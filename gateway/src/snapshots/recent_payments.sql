select payment_id::text, json_build_object(
    'paymentId', payment_id, 'amount', trim_scale(amount::numeric), 'parentName', parent_name,
    'childName', child_name, 'invoiceNumber', invoice_number, 'receivedAt', received_at)::text as payment
from (
    select * from dashboard.recent_payments where tenant_id = $1
    order by received_at desc, payment_id desc limit 60
) newest
order by received_at desc, payment_id desc
