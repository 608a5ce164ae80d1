export { type DashboardConnection, useDashboardSocket, useDashboardState } from "./hooks.js";
export { DashboardProvider, type DashboardProviderProps, WebSocketContext } from "./provider.js";
