"use client";

import { useContext, useMemo, useSyncExternalStore } from "react";
import type { DashboardSocket, DashboardState } from "../core/index.js";
import { initialState } from "../core/state.js";
import { WebSocketContext } from "./provider.js";

/** The state and the actions of `useDashboardSocket`. The same object until the state changes. */
export interface DashboardConnection extends DashboardState {
  /** Whether events are shown live; `status` has the details. */
  isConnected: boolean;
  connect: () => void;
  disconnect: () => void;
  dismissAlert: (id: string) => void;
}

/** The dashboard of the provider above this component. */
export function useDashboardSocket(): DashboardConnection {
  const socket = useSocket();
  const state = useSyncExternalStore(socket.subscribe, socket.getState, () => initialState);
  return useMemo(() => {
    const { connect, disconnect, dismissAlert } = socket;
    return { ...state, isConnected: state.status.state === "connected", connect, disconnect, dismissAlert };
  }, [socket, state]);
}

/**
 * A part of the state: a component with `useDashboardState((state) => state.payments)` renders when a payment comes, and not when
 * a figure changes. `select` must return a part of the state, not a new object.
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
