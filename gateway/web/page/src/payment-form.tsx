import { type FormEvent, useCallback, useEffect, useId, useRef, useState } from "react";
import { formatRand } from "./format.js";

type Invoice = { invoiceId: string; invoiceNumber: string; balance: number };

/** The demo's till: a payment recorded here appears in every window of the centre. */
export function PaymentForm() {
  const [invoices, setInvoices] = useState<Invoice[]>([]);
  const [chosen, setChosen] = useState("");
  const [amount, setAmount] = useState("");
  const [outcome, setOutcome] = useState("");
  const [busy, setBusy] = useState(false);
  // A second request after a lost answer must not record the payment twice.
  const key = useRef(crypto.randomUUID?.() ?? String(Math.random()));
  const current = useRef<string>(undefined);
  const ids = { invoice: useId(), amount: useId() };

  const choose = useCallback((invoice: Invoice | undefined) => {
    current.current = invoice?.invoiceId;
    setChosen(invoice?.invoiceId ?? "");
    setAmount(invoice ? invoice.balance.toFixed(2) : "");
  }, []);
  const load = useCallback(async () => {
    const answer = await fetch("/demo/invoices", { cache: "no-store" }).catch(() => null);
    if (!answer?.ok) return setOutcome("The invoices can't be read just now.");
    const invoices: Invoice[] = await answer.json();
    setInvoices(invoices);
    // The chosen invoice stays, unless it was paid elsewhere.
    if (!invoices.some((it) => it.invoiceId === current.current)) choose(invoices[0]);
  }, [choose]);
  useEffect(() => void load(), [load]);

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    const answer = await fetch("/demo/payments", {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": key.current },
      body: JSON.stringify({ invoiceId: chosen, amount: Number(amount) }),
    }).catch(() => null);
    setBusy(false);
    if (!answer) return setOutcome("No answer came. Try again: the payment won't be recorded twice.");
    key.current = crypto.randomUUID?.() ?? String(Math.random());
    if (!answer.ok) {
      const problem = await answer.json().catch(() => null);
      setOutcome(problem?.detail ?? `The payment was refused (${answer.status}).`);
    } else {
      setOutcome("Recorded.");
      current.current = undefined;
    }
    await load();
  };

  return (
    <section className="panel till" aria-labelledby="till-title">
      <h2 id="till-title">Record a payment</h2>
      <form onSubmit={submit}>
        <label htmlFor={ids.invoice}>Invoice</label>
        <select id={ids.invoice} required value={chosen} onChange={(event) => choose(invoices.find((it) => it.invoiceId === event.target.value))}>
          {invoices.map((invoice) => (
            <option key={invoice.invoiceId} value={invoice.invoiceId}>{invoice.invoiceNumber} · {formatRand(invoice.balance)}</option>
          ))}
        </select>
        <label htmlFor={ids.amount}>Amount (R)</label>
        <input id={ids.amount} type="number" min="0.01" step="0.01" required value={amount} onChange={(event) => setAmount(event.target.value)} />
        <button disabled={busy || !chosen}>Record</button>
      </form>
      <p className="outcome" role="status">{outcome}</p>
    </section>
  );
}
