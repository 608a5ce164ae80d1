"use client";

import { useContext, useMemo, useSyncExternalStore } from "react";
import type { DashboardSocket, DashboardState } from "../core/index.js";
import { initialState } from "../core/state.js";
import { WebSocketContext } from "./provider.js";

/** What `useDashboardSocket` gives: the state, and what can be done. The same object until the state changes. */
export interface DashboardConnection extends DashboardState {
  /** Whether what happens is shown as it happens; `status` tells what it is instead. */
  isConnected: boolean;
  connect: () => void;
  disconnect: () => void;
  dismissAlert: (id: string) => void;
}

/** The dashboard of the provider above. */
export function useDashboardSocket(): DashboardConnection {
  const socket = useSocket();
  const state = useSyncExternalStore(socket.subscribe, socket.getState, () => initialState);
  return useMemo(() => {
    const { connect, disconnect, dismissAlert } = socket;
    return { ...state, isConnected: state.status.state === "connected", connect, disconnect, dismissAlert };
  }, [socket, state]);
}

/**
 * A part of the state, for components that need no more: `useDashboardState((state) => state.payments)` renders again when a
 * payment comes, and not when a figure changes. `select` must pick, not build.
 */
export function useDashboardState<T>(select: (state: DashboardState) => T): T {
  const socket = useSocket();
  const selected = () => select(socket.getState());
  return useSyncExternalStore(socket.subscribe, selected, () => select(initialState));
}

function useSocket(): DashboardSocket {
  const socket = useContext(WebSocketContext);
  if (!socket) throw new Error("useDashboardSocket needs a <DashboardProvider> above it");
  return socket;
}
