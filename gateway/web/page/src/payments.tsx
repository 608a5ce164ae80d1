import { useRef } from "react";
import type { RecentPayment } from "../../src/core/index.js";
import { useDashboardState } from "../../src/react/index.js";
import { formatRand, formatWhen } from "./format.js";
import { usePaced } from "./motion.js";
import { Summary } from "./summary.js";

/** The height of a row, as in the style sheet. */
const ROW_PX = 60;
/** In a burst the list moves five times a second at most. */
const PACE_MS = 200;

/** The newest payments. Rows move by transforms only: a new one slides in without a new layout. */
export function Payments() {
  const payments = usePaced(useDashboardState((state) => state.payments), PACE_MS);
  const none = useDashboardState((state) => state.lastUpdate !== null && state.payments.length === 0);
  const known = useRef<Set<string> | null>(null);
  const before = known.current;
  known.current = new Set(payments.map((payment) => payment.paymentId));
  return (
    <section className="panel payments" aria-labelledby="payments-title">
      <div className="title">
        <h2 id="payments-title">Payments</h2>
        <Summary />
      </div>
      {/* Focusable, so that the keyboard can scroll it. */}
      <div className="scroll" tabIndex={0} role="group" aria-labelledby="payments-title">
        {none && <p className="empty">No payments yet.</p>}
        <ol style={{ height: payments.length * ROW_PX }}>
          {payments.map((payment, index) => (
            <Row key={payment.paymentId} payment={payment} index={index} fresh={!!before?.size && !before.has(payment.paymentId)} />
          ))}
        </ol>
      </div>
    </section>
  );
}

function Row({ payment, index, fresh }: { payment: RecentPayment; index: number; fresh: boolean }) {
  // A row that was fresh at first keeps its class: the glow ends by itself.
  const { current: glows } = useRef(fresh);
  return (
    <li style={{ transform: `translateY(${index * ROW_PX}px)` }} data-payment={payment.paymentId}>
      <div className={glows ? "row glow-row" : "row"}>
        <time dateTime={payment.receivedAt}>{formatWhen(payment.receivedAt)}</time>
        <span className="who">
          <span className="parent">{payment.parentName}</span>
          <span className="what">{payment.childName} · {payment.invoiceNumber}</span>
        </span>
        <strong>{formatRand(payment.amount)}</strong>
      </div>
    </li>
  );
}
