import { backoff } from "./backoff.js";
import { type DashboardSocketOptions, gatewayUrl } from "./options.js";
import { isOffline, listenToPage } from "./page.js";
import { Polling } from "./polling.js";
import { DISABLED, FORBIDDEN, Session, type SessionEvents, UNAUTHORIZED } from "./session.js";
import type { ClosedReason } from "./state.js";
import { Store } from "./store.js";

/** A connection that lasted this long was a good one: the next failure counts as the first. */
const STABLE_MS = 5_000;
/** A kick revokes tokens issued until its second, by a clock that may differ: after this time a new token is later. */
const REVOKED_MS = 2_000;
/** The interval of polling when the gateway did not name one. */
const POLL_SECONDS = 30;

/**
 * A tenant's live dashboard. It does not depend on any framework: a store needs only `subscribe` and `getState`.
 *
 * Every event is seen once and in order, across reconnects; when that is impossible, the gateway sends a snapshot instead.
 */
export class DashboardSocket {
  readonly #options: DashboardSocketOptions;
  readonly #store = new Store();
  #session: Session | null = null;
  /** The wait for the next attempt or the next snapshot. */
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** The gateway set this wait, to spread reconnects; waking the tab must not shorten it. */
  #paced = false;
  #failures = 0;
  /** The last token was refused. */
  #refused = false;
  /** Set while live updates are switched off. */
  #polling: Polling | null = null;
  /** Set between `connect` and the end; aborting it ends the listening to the page. */
  #connected: AbortController | null = null;

  constructor(options: DashboardSocketOptions) {
    this.#options = options;
  }

  getState = this.#store.getState;

  /** Calls `listener` after every change of the state. Returns a function that ends this. */
  subscribe = this.#store.subscribe;

  /** Calls `listener` with every event, also with events between two renderings. Returns a function that ends this. */
  onEvent = this.#store.onEvent;

  /** Removes an alert; a newer one of the same parent is shown again. */
  dismissAlert = this.#store.dismissAlert;

  /** Connects, and reconnects whenever the connection is lost. Without effect when called again. Throws when `url` is invalid. */
  connect = (): void => {
    if (this.#connected) return;
    gatewayUrl(this.#options, "ws");
    this.#connected = new AbortController();
    this.#failures = 0;
    this.#refused = false;
    listenToPage(
      () => this.#wake(),
      () => this.#reconnect(),
      () => this.#freeze(),
      this.#connected.signal,
    );
    this.#store.show({ state: "connecting" });
    this.#open();
  };

  /** Closes the connection and ends all timers and listeners. `connect` resumes from the last event. */
  disconnect = (): void => {
    if (this.#connected) this.#stop("disconnected", "disconnected");
  };

  #open() {
    this.#wait();
    if (isOffline()) this.#reconnect();
    else void this.#newSession().open();
  }

  #newSession = (): Session => (this.#session = new Session(this.#options, this.#store, this.#on));

  readonly #on: SessionEvents = {
    joined: () => {
      this.#refused = false;
      this.#polling = null;
      this.#wait();
    },
    refreshed: () => {
      this.#refused = false;
      this.#reconnect();
    },
    ended: (code, message = "", pollSeconds = this.#polling?.everySeconds ?? POLL_SECONDS) => {
      if (code === UNAUTHORIZED) this.#refuse(message);
      else if (code === FORBIDDEN) this.#forbid(message);
      else if (code === DISABLED) this.#disable(pollSeconds);
      else this.#reconnect();
    },
    stopped: (reason, message, tenants) => this.#stop(reason, message, tenants),
  };

  /** The token was refused: asks for another one, once. */
  #refuse(message: string) {
    if (this.#refused) return this.#stop("unauthorized", message);
    // A kick also revokes tokens that are issued in its own second: a token asked for at once could be refused again.
    const revoked = this.#session?.error?.code === "kicked" ? REVOKED_MS : 0;
    this.#reset();
    this.#refused = true;
    // An operator's kick closes many sockets at once: the wait spreads them.
    this.#openIn(revoked + backoff(this.#failures++), true);
  }

  /** The token is not for this tenant; the next one may be another user's. */
  #forbid(message: string) {
    this.#store.forget();
    this.#stop("forbidden", message);
  }

  /** Ends the session and plans the next attempt. */
  #reconnect() {
    const retryInMs = this.#session?.error?.retryInMs;
    this.#reset();
    const offline = isOffline();
    if (this.#polling) return offline ? undefined : this.#pollLater(this.#polling);
    if (offline) return this.#store.show({ state: "reconnecting", retryAt: null, offline });
    this.#openIn(retryInMs ?? backoff(this.#failures++), retryInMs !== undefined);
  }

  #openIn(ms: number, paced: boolean) {
    this.#wait(ms, () => {
      this.#showReconnecting(null);
      this.#open();
    });
    this.#paced = paced;
    this.#showReconnecting(Date.now() + ms);
  }

  #stop(reason: ClosedReason, message: string, tenants?: readonly string[]) {
    this.#reset();
    this.#polling = null;
    this.#connected?.abort();
    this.#connected = null;
    this.#store.show({ state: "closed", reason, message, ...(tenants && { tenants }) });
  }

  /** Ends the session and the wait. */
  #reset() {
    const joinedAt = this.#session?.joinedAt ?? null;
    if (joinedAt !== null && Date.now() - joinedAt >= STABLE_MS) this.#failures = 0;
    this.#session?.end();
    this.#session = null;
    this.#wait();
  }

  #wait(ms?: number, then?: () => void) {
    clearTimeout(this.#timer);
    this.#paced = false;
    this.#timer = ms === undefined ? undefined : setTimeout(() => then?.(), ms);
  }

  /** The user looks at the page again, or the network is back: no wait is useful now, except one that the gateway set. */
  #wake() {
    const session = this.#session;
    if (session?.joinedAt) session.ping();
    else if (!session && !this.#paced) {
      if (this.#polling) return this.#poll();
      if (!isOffline()) this.#showReconnecting(null);
      this.#open();
    }
  }

  #freeze() {
    this.#reset();
    this.#showReconnecting(null);
  }

  // Polling

  #disable(everySeconds: number) {
    this.#reset();
    const tried = this.#polling !== null;
    this.#polling = new Polling(everySeconds);
    this.#store.show({ state: "polling", everySeconds });
    // The first snapshot is wanted now; after a failed try of the WebSocket, the last one is still good.
    if (tried) this.#pollLater(this.#polling);
    else this.#poll();
  }

  #pollLater({ everySeconds }: Polling) {
    this.#wait(everySeconds * 1000, () => this.#poll());
  }

  #poll() {
    if (!this.#polling || isOffline()) return;
    this.#reset();
    if (this.#polling.triesSocket()) this.#open();
    else void this.#newSession().refresh();
  }

  /** While polling, the status stays `polling`. */
  #showReconnecting(retryAt: number | null) {
    if (!this.#polling) this.#store.show({ state: "reconnecting", retryAt, offline: false });
  }
}
