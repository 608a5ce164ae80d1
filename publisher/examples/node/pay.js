// DATABASE_URL=postgres://… node pay.js <tenant> <payment id> <invoice id> <amount>
import pg from "pg";
import { PaymentsService } from "./payments.service.js";

const [tenantId, paymentId, invoiceId, amount] = process.argv.slice(2);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
try {
  console.log(await new PaymentsService(pool).record({ tenantId, paymentId, invoiceId, amount }));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await pool.end();
}
