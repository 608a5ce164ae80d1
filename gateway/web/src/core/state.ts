import type { ArrearsAlert, DashboardEvent, EventsCondensed, MetricsUpdated } from "./events.js";
import type { RecentPayment, SnapshotData } from "./messages.js";

/** Payments that are kept, the newest first. */
export const MAX_PAYMENTS = 50;
/** Alerts that are kept: one a parent, the newest first. */
export const MAX_ALERTS = 100;
/** How far the server's clock may be ahead of this one, in milliseconds. */
const MAX_AHEAD = 60_000;

/** Why the socket is closed and does not reconnect. */
export type ClosedReason =
  /** `connect` was not called yet. */
  | "idle"
  /** `disconnect` was called. */
  | "disconnected"
  /** Two tokens in a row were refused, or no user is signed in: sign in, then `connect`. */
  | "unauthorized"
  /** The token is valid, but not for this tenant. */
  | "forbidden"
  /** The token names several tenants: connect with one of `tenants` as `tenantId`. */
  | "tenant_required";

/** How the dashboard is connected. Times are milliseconds since 1970, as in `Date.now()`. */
export type Status =
  /** The first connection is being made. */
  | { state: "connecting" }
  /** Live: events are shown as they happen, and none was missed. */
  | { state: "connected" }
  /** The socket is open, but the gateway can't guarantee live delivery since then. Missed events will be sent later. */
  | { state: "degraded"; reason: string; since: string }
  /** The connection was lost. The next attempt is at `retryAt`; null while it is under way, or until the network is back. */
  | { state: "reconnecting"; retryAt: number | null; offline: boolean }
  /** Live updates are switched off at the gateway: the figures are refreshed this often. */
  | { state: "polling"; everySeconds: number }
  | { state: "closed"; reason: ClosedReason; message: string; tenants?: readonly string[] };

/** An alert that has not been dismissed. */
export type Alert = ArrearsAlert & { id: string; timestamp: string };

/** Everything that a dashboard shows. A change replaces the object; unchanged parts keep their identity. */
export interface DashboardState {
  readonly status: Status;
  /** The tenant whose figures these are; null before the first join. */
  readonly tenantId: string | null;
  /** The figures with the latest `asOf`; null before the first ones. */
  readonly metrics: MetricsUpdated | null;
  /** By `receivedAt`, the newest first; each payment once. */
  readonly payments: readonly RecentPayment[];
  /** The newest first; the latest of each parent, until dismissed. */
  readonly alerts: readonly Alert[];
  readonly lastEvent: DashboardEvent | null;
  /** When the last event or snapshot came. */
  readonly lastUpdate: number | null;
}

export const initialState: DashboardState = {
  status: { state: "closed", reason: "idle", message: "not connected yet" },
  tenantId: null,
  metrics: null,
  payments: [],
  alerts: [],
  lastEvent: null,
  lastUpdate: null,
};

/** The state after an event. */
export function withEvent(state: DashboardState, event: DashboardEvent, now: number): DashboardState {
  const next = { ...state, lastEvent: event, lastUpdate: now };
  switch (event.type) {
    case "payment_received":
      return { ...next, payments: withPayment(state.payments, { ...event.data, receivedAt: event.timestamp }) };
    case "arrears_alert": {
      const alert = { ...event.data, id: event.id, timestamp: event.timestamp };
      const others = state.alerts.filter((it) => it.parentId !== alert.parentId);
      return { ...next, alerts: [alert, ...others].slice(0, MAX_ALERTS) };
    }
    case "metrics_updated":
      return { ...next, metrics: withFigures(state.metrics, event.data, now) };
    default:
      return next;
  }
}

/**
 * The later figures: newer ones may arrive first. Those of an event without figures are null. Known figures from the future come from a
 * wrong clock and are replaced: otherwise they would stay for good.
 */
function withFigures(
  known: MetricsUpdated | null,
  figures: MetricsUpdated | EventsCondensed | null,
  now: number,
): MetricsUpdated | null {
  if (!figures || figures.totalOutstanding === null) return known;
  if (!known || Date.parse(known.asOf) > now + MAX_AHEAD) return figures;
  return Date.parse(figures.asOf) < Date.parse(known.asOf) ? known : figures;
}

/**
 * The list with this payment at the place of its time, since older payments may come last after an outage. A payment that a snapshot
 * brought before its event is shown once.
 */
function withPayment(payments: readonly RecentPayment[], payment: RecentPayment): readonly RecentPayment[] {
  const known = payments.findIndex((it) => it.paymentId === payment.paymentId);
  // The place stays: the event and the books may have slightly different times.
  if (known >= 0) return payments.with(known, { ...payment, receivedAt: payments[known]!.receivedAt });
  const at = Date.parse(payment.receivedAt);
  const older = payments.findIndex((it) => !(Date.parse(it.receivedAt) > at));
  return payments.toSpliced(older < 0 ? payments.length : older, 0, payment).slice(0, MAX_PAYMENTS);
}

/** The state after a snapshot, which replaces the parts that it has. Parts that are null stay as they were. */
export function withSnapshot(state: DashboardState, { metrics, payments }: SnapshotData, now: number): DashboardState {
  return {
    ...state,
    metrics: withFigures(state.metrics, metrics, now),
    payments: payments ?? state.payments,
    lastUpdate: metrics || payments ? now : state.lastUpdate,
  };
}

/** The state with the payments of a snapshot added: the stream may be ahead of the snapshot, so nothing is removed. */
export function withMore(state: DashboardState, { metrics, payments }: SnapshotData, now: number): DashboardState {
  return {
    ...state,
    metrics: withFigures(state.metrics, metrics, now),
    payments: (payments ?? []).reduceRight<readonly RecentPayment[]>(withPayment, state.payments),
    lastUpdate: now,
  };
}

/** The state for this tenant: of another tenant's dashboard nothing may stay. */
export function ofTenant(state: DashboardState, tenantId: string | null): DashboardState {
  return state.tenantId === tenantId ? state : { ...initialState, status: state.status, tenantId };
}
