// Written from the Rust types by `UPDATE_TYPES=1 cargo test typescript`; a test fails when they differ.
import type { DashboardEvent, MetricsUpdated, Money } from "./events.js";

export type JoinData = { tenantId: string, token?: string, lastSeq?: number, epoch?: string, lastId?: string, };

/** A message of a browser. */
export type ClientMessage =
  | { event: "join"; data: JoinData }
  | { event: "leave" }
  | { event: "ping" };

/**
 * A payment of a snapshot.
 */
export type RecentPayment = { 
/**
 * Names the payment.
 */
paymentId: string, 
/**
 * What was paid.
 */
amount: Money, 
/**
 * Who paid.
 */
parentName: string, 
/**
 * For whom.
 */
childName: string, 
/**
 * The invoice it was paid on.
 */
invoiceNumber: string, 
/**
 * When it was received.
 */
receivedAt: string, };

/**
 * What a dashboard starts from; null where there is none.
 */
export type SnapshotData = { metrics: MetricsUpdated | null, payments: RecentPayment[] | null, };

export type Joined = { tenantId: string, epoch: string, seq: number, recovered: boolean, heartbeatSeconds: number, metrics: MetricsUpdated | null, payments: RecentPayment[] | null, };

export type Left = { tenantId: string, };

export type Resync = { epoch: string, seq: number, metrics: MetricsUpdated | null, payments: RecentPayment[] | null, };

export type Heartbeat = { epoch: string | null, seq: number | null, };

export type TokenExpiring = { expiresInSeconds: number, };

export type Health = { reason: string, since: string, };

export type Disabled = { pollSeconds: number, };

export type ErrorData = { code: string, message: string, retryInMs?: number, tenants?: string[], };

/** A message of the gateway (gateway/docs/protocol.md). */
export type ServerMessage =
  | DashboardEvent
  | { type: "joined"; timestamp: string; data: Joined }
  | { type: "left"; timestamp: string; data: Left }
  | { type: "resync"; timestamp: string; data: Resync }
  | { type: "heartbeat"; timestamp: string; data: Heartbeat }
  | { type: "token_expiring"; timestamp: string; data: TokenExpiring }
  | { type: "degraded"; timestamp: string; data: Health }
  | { type: "restored"; timestamp: string; data: Health }
  | { type: "disabled"; timestamp: string; data: Disabled }
  | { type: "error"; timestamp: string; data: ErrorData };
