import type { ArrearsAlert, DashboardEvent, EventsCondensed, MetricsUpdated } from "./events.js";
import type { RecentPayment, SnapshotData } from "./messages.js";

/** Payments that are kept, the newest first. */
export const MAX_PAYMENTS = 50;
/** Alerts that are kept: one a parent, the newest first. */
export const MAX_ALERTS = 100;
/** Milliseconds that the server's clock may be ahead of ours. */
const MAX_AHEAD = 60_000;

/** Why nothing comes and nothing is tried. */
export type ClosedReason =
  /** `connect` was not called yet. */
  | "idle"
  /** `disconnect` was called. */
  | "disconnected"
  /** Two tokens in a row were refused, or there is none: sign in, then `connect`. */
  | "unauthorized"
  /** The token is good, but not for this tenant. */
  | "forbidden"
  /** The token names several tenants: connect with one of `tenants` as `tenantId`. */
  | "tenant_required";

/** How the dashboard is connected. Times are milliseconds since 1970, as in `Date.now()`. */
export type Status =
  /** The first connection is being made. */
  | { state: "connecting" }
  /** Live: what happens is shown as it happens, and nothing was missed. */
  | { state: "connected" }
  /** The socket is open, but the gateway can't vouch for live delivery since then. What is missed is made up for. */
  | { state: "degraded"; reason: string; since: string }
  /** The connection was lost. The next attempt is at `retryAt`; null while it is under way, or until the network is back. */
  | { state: "reconnecting"; retryAt: number | null; offline: boolean }
  /** Live updates are switched off at the gateway: the figures are refreshed this often. */
  | { state: "polling"; everySeconds: number }
  | { state: "closed"; reason: ClosedReason; message: string; tenants?: readonly string[] };

/** An alert that has not been dismissed. */
export type Alert = ArrearsAlert & { id: string; timestamp: string };

/** All that a dashboard shows. Replaced as a whole when something changes; what did not change keeps its identity. */
export interface DashboardState {
  readonly status: Status;
  /** The tenant whose figures these are; null before the first join. */
  readonly tenantId: string | null;
  /** Null until the first figures come; then those with the latest `asOf`. */
  readonly metrics: MetricsUpdated | null;
  /** By `receivedAt`, the newest first; each payment once. */
  readonly payments: readonly RecentPayment[];
  /** The newest first; the latest of each parent, until dismissed. */
  readonly alerts: readonly Alert[];
  readonly lastEvent: DashboardEvent | null;
  /** When an event or a snapshot last came. */
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
 * Figures can overtake each other on their way, and are null where an event only says what was condensed. Known figures from the future
 * come from a clock that was wrong: they would stay for good.
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

/** A snapshot may hold a payment whose event is still to come: it is shown once all the same. After an outage older payments come last. */
function withPayment(payments: readonly RecentPayment[], payment: RecentPayment): readonly RecentPayment[] {
  const known = payments.findIndex((it) => it.paymentId === payment.paymentId);
  // Its place stays: the event and the books may give it slightly different times.
  if (known >= 0) return payments.with(known, { ...payment, receivedAt: payments[known]!.receivedAt });
  const at = Date.parse(payment.receivedAt);
  const older = payments.findIndex((it) => !(Date.parse(it.receivedAt) > at));
  return payments.toSpliced(older < 0 ? payments.length : older, 0, payment).slice(0, MAX_PAYMENTS);
}

/** The state after a snapshot, which replaces what it has; null says that this part can't be had. */
export function withSnapshot(state: DashboardState, { metrics, payments }: SnapshotData, now: number): DashboardState {
  return {
    ...state,
    metrics: withFigures(state.metrics, metrics, now),
    payments: payments ?? state.payments,
    lastUpdate: metrics || payments ? now : state.lastUpdate,
  };
}

/** The state with what a snapshot has besides: the stream goes on meanwhile, and may be ahead of it. */
export function withMore(state: DashboardState, { metrics, payments }: SnapshotData, now: number): DashboardState {
  return {
    ...state,
    metrics: withFigures(state.metrics, metrics, now),
    payments: (payments ?? []).reduceRight<readonly RecentPayment[]>(withPayment, state.payments),
    lastUpdate: now,
  };
}

/** The state of another tenant's dashboard: nothing of the one before may stay. */
export function ofTenant(state: DashboardState, tenantId: string | null): DashboardState {
  return state.tenantId === tenantId ? state : { ...initialState, status: state.status, tenantId };
}
