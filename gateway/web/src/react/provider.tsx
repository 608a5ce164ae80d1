"use client";

import { createContext, type ReactNode, useEffect, useMemo, useRef } from "react";
import { DashboardSocket, type DashboardSocketOptions } from "../core/index.js";

/** The socket of the provider above this component. */
export const WebSocketContext = createContext<DashboardSocket | null>(null);

export interface DashboardProviderProps extends DashboardSocketOptions {
  /** With false, the app calls `connect()` itself. */
  autoConnect?: boolean;
  children?: ReactNode;
}

/**
 * Keeps one dashboard socket for all hooks below it, from mount to unmount. `getToken` may be a new function at every rendering;
 * another `url` or `tenantId` makes a new socket. An app whose users can change gives it the user's id as `key`.
 */
export function DashboardProvider({ url, tenantId, getToken, autoConnect = true, children }: DashboardProviderProps) {
  const latest = useRef(getToken);
  useEffect(() => {
    latest.current = getToken;
  });
  const socket = useMemo(() => {
    const options: DashboardSocketOptions = { getToken: () => latest.current() };
    if (url !== undefined) options.url = url;
    if (tenantId !== undefined) options.tenantId = tenantId;
    return new DashboardSocket(options);
  }, [url, tenantId]);
  useEffect(() => {
    if (autoConnect) socket.connect();
    return socket.disconnect;
  }, [socket, autoConnect]);
  return <WebSocketContext.Provider value={socket}>{children}</WebSocketContext.Provider>;
}
