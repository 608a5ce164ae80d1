// Written from the Rust types by `UPDATE_TYPES=1 cargo test typescript`; a test fails when they differ.

/** An amount in rand, with at most two decimals. */
export type Money = number;

/**
 * A parent paid.
 */
export type PaymentReceived = { 
/**
 * Names the payment; dashboards show one payment once. 1 to 128 characters.
 */
paymentId: string, 
/**
 * The amount that was paid; never negative.
 */
amount: Money, 
/**
 * The parent who paid. 1 to 200 characters.
 */
parentName: string, 
/**
 * The child that the payment is for. 1 to 200 characters.
 */
childName: string, 
/**
 * The invoice it was paid on. 1 to 128 characters.
 */
invoiceNumber: string, };

/**
 * An invoice went from one status to another.
 */
export type InvoiceStatusChanged = { 
/**
 * Names the invoice. 1 to 128 characters.
 */
invoiceId: string, 
/**
 * The number on the invoice. 1 to 128 characters.
 */
invoiceNumber: string, 
/**
 * The status it had, `PENDING` for one. 1 to 64 characters.
 */
previousStatus: string, 
/**
 * The status it has now. 1 to 64 characters.
 */
newStatus: string, };

/**
 * A parent owes money that is overdue.
 */
export type ArrearsAlert = { 
/**
 * Names the parent. 1 to 128 characters.
 */
parentId: string, 
/**
 * The parent who owes. 1 to 200 characters.
 */
parentName: string, 
/**
 * The sum that is overdue; never negative.
 */
totalArrears: Money, 
/**
 * For how many days.
 */
daysOverdue: number, };

/**
 * The centre's figures, as a whole: each one replaces the one before it.
 */
export type MetricsUpdated = { 
/**
 * What all parents owe; negative when the centre owes them.
 */
totalOutstanding: Money, 
/**
 * The part of it that is overdue.
 */
totalArrears: Money, 
/**
 * How many parents owe overdue money.
 */
accountsInArrears: number, 
/**
 * Payments of today, by the centre's calendar.
 */
paymentsToday: number, 
/**
 * Their sum.
 */
amountReceivedToday: Money, 
/**
 * How many invoices have each status.
 */
invoicesByStatus: { [key in string]: number }, 
/**
 * The moment these figures are of.
 */
asOf: string, 
/**
 * How many events of each kind these figures stand for, when a backlog was condensed into them.
 */
condensed?: { [key in DashboardEventType]?: number }, };

/**
 * Events that were condensed for a centre without figures: written as a `metrics_updated` whose six figures are null.
 */
export type EventsCondensed = { totalOutstanding: null, totalArrears: null, accountsInArrears: null, paymentsToday: null, amountReceivedToday: null, invoicesByStatus: null, 
/**
 * The moment at which the events were condensed.
 */
asOf: string, 
/**
 * How many events of each kind were condensed.
 */
condensed: { [key in DashboardEventType]?: number }, };

/**
 * The four kinds of event.
 */
export type DashboardEventType = "payment_received" | "invoice_status_changed" | "arrears_alert" | "metrics_updated";

/** Something that happened at a centre. `seq` is one more than that of the event before it; `id` names it for ever. */
export type DashboardEvent =
  | { type: "payment_received"; seq: number; id: string; timestamp: string; data: PaymentReceived }
  | { type: "invoice_status_changed"; seq: number; id: string; timestamp: string; data: InvoiceStatusChanged }
  | { type: "arrears_alert"; seq: number; id: string; timestamp: string; data: ArrearsAlert }
  | { type: "metrics_updated"; seq: number; id: string; timestamp: string; data: MetricsUpdated | EventsCondensed };
