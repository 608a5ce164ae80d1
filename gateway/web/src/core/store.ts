import type { DashboardEvent } from "./events.js";
import type { Heartbeat, SnapshotData } from "./messages.js";
import type { Position } from "./offers.js";
import { type DashboardState, initialState, ofTenant, type Status, withEvent, withMore, withSnapshot } from "./state.js";

/** What a dashboard shows, the position that it is of, and its listeners. It knows no timer and no network. */
export class Store {
  state: DashboardState = initialState;
  readonly #listeners = new Set<() => void>();
  readonly #eventListeners = new Set<(event: DashboardEvent) => void>();
  /** The last event that was seen; null before the first join. */
  position: Position | null = null;
  /** A gateway has shown that it resumes from the position in a handshake, which older ones ignore. */
  resumes = false;
  /** Payments were folded into figures, and only a snapshot has them. */
  folded = false;

  getState = (): DashboardState => this.state;

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  onEvent = (listener: (event: DashboardEvent) => void): (() => void) => {
    this.#eventListeners.add(listener);
    return () => void this.#eventListeners.delete(listener);
  };

  dismissAlert = (id: string): void => {
    const alerts = this.state.alerts.filter((alert) => alert.id !== id);
    if (alerts.length < this.state.alerts.length) this.#set({ ...this.state, alerts });
  };

  show(status: Status) {
    this.#set({ ...this.state, status });
  }

  /** Starts from a snapshot and its position. Of another tenant's dashboard nothing stays. */
  startFrom(position: Heartbeat, snapshot: SnapshotData, tenantId = this.state.tenantId) {
    const { epoch, seq } = position;
    this.position = epoch === null || seq === null ? null : { epoch, seq };
    if (snapshot.payments) this.folded = false;
    this.#set(withSnapshot(ofTenant(this.state, tenantId), snapshot, Date.now()));
  }

  /** Adds the payments and figures of a snapshot; the position stays. */
  add(snapshot: SnapshotData) {
    this.folded = false;
    this.#set(withMore(this.state, snapshot, Date.now()));
  }

  /**
   * Shows an event if it is the next one. `hole`: an event before it is missing. `folded`: it is the next one, and stands for payments
   * that only a snapshot has.
   */
  event(event: DashboardEvent): "seen" | "next" | "folded" | "hole" {
    const { seq, id } = event;
    const { position } = this;
    if (!position || seq <= position.seq) return "seen";
    if (seq > position.seq + 1) return "hole";
    this.position = { epoch: position.epoch, seq, id };
    const folded = event.type === "metrics_updated" && event.data.condensed?.payment_received;
    if (folded) this.folded = true;
    this.#set(withEvent(this.state, event, Date.now()));
    for (const listener of [...this.#eventListeners]) listener(event);
    return folded ? "folded" : "next";
  }

  /** Forgets the tenant and the position: the next token may be another user's. */
  forget() {
    this.position = null;
    this.state = { ...this.state, tenantId: null };
  }

  #set(state: DashboardState) {
    this.state = state;
    for (const listener of [...this.#listeners]) listener();
  }
}
