export type * from "./events.js";
export type { ClientMessage, RecentPayment, ServerMessage } from "./messages.js";
export { DashboardSocket, type DashboardSocketOptions, UnauthorizedError } from "./socket.js";
export type { Alert, ClosedReason, DashboardState, Status } from "./state.js";
