/**
 * Records payments the way a NestJS service would, with `pg`. What happened and the event that tells of it are one transaction:
 * `dashboard.emit` is an ordinary SQL function, so Prisma calls it as well, inside `$transaction` with `$executeRaw`.
 */
export class PaymentsService {
  /** @param {import("pg").Pool} pool */
  constructor(pool) {
    this.pool = pool;
  }

  /**
   * @param {{tenantId: string, paymentId: string, invoiceId: string, amount: string}} payment `amount` in rand, as text: money is no float.
   * @returns {Promise<string>} the event's id
   * @throws when the payment breaks a rule; then nothing was written. An event that does is named by field: `data.amount: must not be …`.
   */
  async record({ tenantId, paymentId, invoiceId, amount }) {
    const client = await this.pool.connect();
    try {
      await client.query("begin");
      await client.query(
        `insert into billing.payments (tenant_id, id, invoice_id, amount) values ($1, $2, $3, $4)`,
        [tenantId, paymentId, invoiceId, amount],
      );
      await client.query(
        `update billing.invoices set amount_paid = amount_paid + $3 where tenant_id = $1 and id = $2`,
        [tenantId, invoiceId, amount],
      );
      const { rows } = await client.query(
        `select dashboard.emit(invoice.tenant_id, 'payment_received', jsonb_build_object(
             'paymentId', $3::text, 'amount', $4::numeric, 'parentName', parent.name,
             'childName', child.name, 'invoiceNumber', invoice.number)) as id
         from billing.invoices invoice
         join billing.parents parent on parent.tenant_id = invoice.tenant_id and parent.id = invoice.parent_id
         join billing.children child on child.tenant_id = invoice.tenant_id and child.id = invoice.child_id
         where invoice.tenant_id = $1 and invoice.id = $2`,
        [tenantId, invoiceId, paymentId, amount],
      );
      await client.query("commit"); // now, and only now, the dashboards will show it
      return rows[0].id;
    } catch (error) {
      await client.query("rollback");
      throw error;
    } finally {
      client.release();
    }
  }
}
