export type * from "./events.js";
export type { ClientMessage, RecentPayment, ServerMessage } from "./messages.js";
export { type DashboardSocketOptions, UnauthorizedError } from "./options.js";
export { DashboardSocket } from "./socket.js";
export type { Alert, ClosedReason, DashboardState, Status } from "./state.js";
