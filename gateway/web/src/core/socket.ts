import { backoff } from "./backoff.js";
import type { DashboardEvent } from "./events.js";
import { Link } from "./link.js";
import type { ErrorData, Heartbeat, Joined, ServerMessage } from "./messages.js";
import { offers, SUBPROTOCOL } from "./offers.js";
import { isOffline, listenToPage } from "./page.js";
import { fetchSnapshot, Polling } from "./polling.js";
import type { ClosedReason } from "./state.js";
import { Store } from "./store.js";

/** How long a gateway may take to join by the handshake before it is asked whether it did. */
const HANDSHAKE_JOIN_MS = 2_000;
/** A connection that lasted this long was a good one: the next failure counts as the first. */
const STABLE_MS = 5_000;
/** The time between two renewals, also after a failure: the gateway warns 60 s before a token's end. */
const RENEW_AGAIN_MS = 10_000;
/** When the payments are fetched that were folded into figures: the gateway gives a snapshot out again for a second. */
const UNFOLD_FROM_MS = 1_000;
/** The random part of that wait: all pages of a centre get the same event at once. */
const UNFOLD_SPREAD_MS = 3_000;
const UNFOLD_TRIES = 3;
/** A kick revokes tokens issued until its second, by a clock that may differ: after this time a new token is later. */
const REVOKED_MS = 2_000;

/** Close codes after which the client does more than reconnect (gateway/docs/protocol.md). */
const UNAUTHORIZED = 4401;
const FORBIDDEN = 4403;
const DISABLED = 4503;

export interface DashboardSocketOptions {
  /** The gateway's URL, `wss://…/dashboard`; on the page's own origin, and by default, `/dashboard`. */
  url?: string;
  /**
   * Returns the user's CrecheBooks JWT. Called at every connect, and a minute before a token ends. A rejection is tried again with
   * backoff, unless it is an {@link UnauthorizedError}.
   */
  getToken: () => Promise<string>;
  /** The tenant of the dashboard. Needed only when the token names several tenants. */
  tenantId?: string;
}

/** Thrown by `getToken` when no user is signed in: the socket closes, and waits for `connect`. */
export class UnauthorizedError extends Error {
  override name = "UnauthorizedError";
}

/**
 * A tenant's live dashboard. It does not depend on any framework: a store needs only `subscribe` and `getState`.
 *
 * Every event is seen once and in order, across reconnects; when that is impossible, the gateway sends a snapshot instead.
 */
export class DashboardSocket {
  readonly #options: DashboardSocketOptions;
  readonly #store = new Store();
  #link: Link | null = null;
  /** The wait for the next attempt or the next snapshot. */
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** The gateway set this wait, to spread reconnects; waking the tab must not shorten it. */
  #paced = false;
  #failures = 0;
  /** The last token was refused. */
  #refused = false;
  /** A gateway has shown that it resumes by handshake. */
  #resumes = false;
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
    this.#url("ws");
    this.#connected = new AbortController();
    this.#failures = 0;
    this.#refused = false;
    const events = { wake: () => this.#wake(), offline: () => this.#reconnect(), freeze: () => this.#freeze() };
    listenToPage(events, this.#connected.signal);
    this.#store.show({ state: "connecting" });
    this.#open();
  };

  /** Closes the connection and ends all timers and listeners. `connect` resumes from the last event. */
  disconnect = (): void => {
    if (this.#connected) this.#stop("disconnected", "disconnected");
  };

  // The connection

  #open() {
    this.#wait();
    if (isOffline()) this.#reconnect();
    else void this.#attempt(this.#newLink());
  }

  #newLink = (): Link => (this.#link = new Link(() => this.#reconnect()));

  async #attempt(link: Link) {
    const token = await this.#token(link);
    if (token === null) return;
    link.token = token;
    const tenantId = this.#tenant();
    const offered = offers(token, tenantId, this.#store.position);
    if (!offered && tenantId === null) return this.#refuse("a handshake can't carry this token");
    const opened = () => {
      if (!offered) this.#join(link);
      // Older gateways wait for a message when a token names several tenants: the answer to a ping tells.
      else if (tenantId !== null) link.after("handshake", HANDSHAKE_JOIN_MS, () => link.send({ event: "ping" }));
    };
    const received = (message: ServerMessage) => this.#receive(link, message);
    const closed = (code: number) => this.#closed(code, link.error?.message);
    try {
      link.open(this.#url("ws"), offered ?? SUBPROTOCOL, { opened, received, closed });
    } catch (error) {
      this.#refuse(String(error));
    }
  }

  /** Joins by message, when the handshake can't or did not. */
  #join(link: Link) {
    const tenantId = this.#tenant();
    if (link.asked || tenantId === null) return;
    link.asked = true;
    const { seq: lastSeq, epoch, id: lastId } = this.#store.position ?? {};
    // JSON leaves out what is undefined.
    link.send({ event: "join", data: { tenantId, token: link.token, lastSeq, epoch, lastId } });
  }

  /** The chosen or known tenant; null when only the token knows it. */
  #tenant = (): string | null => this.#options.tenantId ?? this.#store.getState().tenantId;

  /** A new token; null when there is none, or when it comes too late for this link. */
  async #token(link: Link): Promise<string | null> {
    try {
      const token = await this.#options.getToken();
      return link === this.#link ? token : null;
    } catch (error) {
      if (link !== this.#link) return null;
      // A joined link still has a valid token.
      if (error instanceof UnauthorizedError && link.joinedAt === null) this.#stop("unauthorized", error.message);
      else if (link.joinedAt === null) this.#reconnect();
      else this.#renewLater(link);
      return null;
    }
  }

  /** Sends the gateway a new token, unless `getToken` returns the last one again, as a cache does. */
  async #renew(link: Link) {
    const wait = link.renewedAt + RENEW_AGAIN_MS - Date.now();
    if (wait > 0) return this.#renewLater(link, wait);
    link.renewedAt = Date.now();
    const token = await this.#token(link);
    if (token === null) return;
    const { tenantId } = this.#store.getState();
    // The gateway may warn before the first `joined` when a token ends soon.
    if (tenantId === null || link.joinedAt === null || token === link.token) return this.#renewLater(link);
    link.token = token;
    link.send({ event: "join", data: { tenantId, token } });
  }

  #renewLater(link: Link, ms = RENEW_AGAIN_MS) {
    link.after("renew", ms, () => void this.#renew(link));
  }

  #closed(code: number, message = `closed with code ${code}`) {
    if (code === UNAUTHORIZED) this.#refuse(message);
    else if (code === FORBIDDEN) this.#forbid(message);
    else if (code === DISABLED) this.#disable(this.#polling?.everySeconds ?? 30);
    else this.#reconnect();
  }

  /** The token was refused: asks for another one, once. */
  #refuse(message: string) {
    if (this.#refused) return this.#stop("unauthorized", message);
    // A kick also revokes tokens that are issued in its own second: a token asked for at once could be refused again.
    const revoked = this.#link?.error?.code === "kicked" ? REVOKED_MS : 0;
    this.#reset();
    this.#refused = true;
    // An operator's kick closes many sockets at once: the wait spreads them.
    this.#openIn(revoked + backoff(this.#failures++), true);
  }

  #forbid(message: string) {
    this.#store.forget();
    this.#stop("forbidden", message);
  }

  /** Ends the link and plans the next attempt. */
  #reconnect() {
    const retryInMs = this.#link?.error?.retryInMs;
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

  /** Ends the link and the wait. */
  #reset() {
    const joinedAt = this.#link?.joinedAt ?? null;
    if (joinedAt !== null && Date.now() - joinedAt >= STABLE_MS) this.#failures = 0;
    this.#link?.end();
    this.#link = null;
    this.#wait();
  }

  #wait(ms?: number, then?: () => void) {
    clearTimeout(this.#timer);
    this.#paced = false;
    this.#timer = ms === undefined ? undefined : setTimeout(() => then?.(), ms);
  }

  /** The user looks at the page again, or the network is back: no wait is useful now, except one that the gateway set. */
  #wake() {
    const link = this.#link;
    if (link?.joinedAt) link.ping();
    else if (!link && !this.#paced) {
      if (this.#polling) return this.#poll();
      if (!isOffline()) this.#showReconnecting(null);
      this.#open();
    }
  }

  #freeze() {
    this.#reset();
    this.#showReconnecting(null);
  }

  // The gateway's messages

  #receive(link: Link, message: ServerMessage) {
    switch (message.type) {
      case "joined":
        return this.#joined(link, message.data);
      case "resync":
        return this.#store.startFrom(message.data, message.data);
      case "heartbeat":
        return this.#heartbeat(link, message.data);
      case "token_expiring":
        return void this.#renew(link);
      case "degraded":
        return this.#store.show({ state: "degraded", ...message.data });
      case "restored":
        return this.#store.show({ state: "connected" });
      case "disabled":
        return this.#disable(message.data.pollSeconds);
      case "error":
        link.error = message.data;
        return message.data.code === "tenant_required" ? this.#choose(link, message.data) : undefined;
      default:
        // Later versions may have types that are not events: they have no seq.
        if ("seq" in message) this.#event(link, message);
    }
  }

  #joined(link: Link, joined: Joined) {
    const renewal = link.joinedAt !== null;
    if (!renewal && !link.asked && !this.#isAsOffered(joined)) {
      link.send({ event: "leave" });
      return this.#join(link);
    }
    // True after a resume by handshake. Also true after a resume by message that failed too: the gateway is not an older one then.
    if (this.#store.position && joined.recovered !== link.asked) this.#resumes = true;
    link.joined(joined.heartbeatSeconds);
    link.cancel("handshake");
    this.#refused = false;
    this.#polling = null;
    this.#wait();
    if (!joined.recovered || !this.#store.position) this.#store.startFrom(joined, joined, joined.tenantId);
    // The answer to a renewed token says nothing about the engine's health.
    if (renewal) return;
    link.joinedAt = Date.now();
    link.heard();
    if (this.#store.folded) this.#unfold(link);
    this.#store.show({ state: "connected" });
  }

  /** Whether the handshake joined the chosen tenant, from the position. Older gateways read only the token from the handshake. */
  #isAsOffered({ tenantId, epoch, seq, recovered }: Joined): boolean {
    const position = this.#store.position;
    const missed = !this.#resumes && position && !recovered && epoch === position.epoch && seq > position.seq;
    return !missed && tenantId === (this.#tenant() ?? tenantId);
  }

  /** The token names several tenants: joins the chosen one, or stops. */
  #choose(link: Link, { message, tenants }: ErrorData) {
    if (this.#tenant() === null) this.#stop("tenant_required", message, tenants);
    else this.#join(link);
  }

  #event(link: Link, event: DashboardEvent) {
    if (link.joinedAt === null) return;
    const outcome = this.#store.event(event);
    // An event was lost between the gateway and here: the gateway's log has it.
    if (outcome === "hole") this.#reconnect();
    // A listener may have disconnected.
    else if (outcome === "folded" && link === this.#link) this.#unfold(link);
  }

  /** Fetches payments that were folded into figures, once for all such events until then. */
  #unfold(link: Link, tries = UNFOLD_TRIES) {
    if (link.awaits("unfold")) return;
    link.after("unfold", UNFOLD_FROM_MS + Math.random() * UNFOLD_SPREAD_MS, async () => {
      const { snapshot } = await this.#fetchSnapshot(link, link.token);
      if (link !== this.#link) return;
      if (snapshot?.payments) this.#store.add(snapshot);
      else if (tries > 1) this.#unfold(link, tries - 1);
    });
  }

  #heartbeat(link: Link, { epoch, seq }: Heartbeat) {
    if (link.joinedAt === null) return epoch === null ? this.#join(link) : undefined;
    link.heard();
    const position = this.#store.position;
    if (epoch !== null && position && (epoch !== position.epoch || seq !== position.seq)) this.#reconnect();
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
    else void this.#refresh(this.#newLink());
  }

  async #refresh(link: Link) {
    const token = await this.#token(link);
    if (token === null) return;
    const { status, snapshot, problem } = await this.#fetchSnapshot(link, token);
    if (link !== this.#link) return;
    if (problem?.code === "tenant_required") return this.#stop("tenant_required", problem.detail, problem.tenants);
    if (status === 401) return this.#refuse("the token is missing, invalid or expired");
    if (status === 403) return this.#forbid("the token does not name this tenant");
    if (snapshot) {
      this.#refused = false;
      this.#store.startFrom(snapshot, snapshot, snapshot.tenantId);
    }
    this.#reconnect();
  }

  #fetchSnapshot = (link: Link, token: string) => fetchSnapshot(this.#url("http"), token, this.#tenant(), link.signal);

  #url(scheme: "ws" | "http"): URL {
    const base = typeof location === "undefined" ? undefined : location.href;
    const url = new URL(this.#options.url ?? "/dashboard", base);
    url.protocol = url.protocol.replace(/^(ws|http)/, scheme);
    return url;
  }

  /** While polling, the status stays `polling`. */
  #showReconnecting(retryAt: number | null) {
    if (!this.#polling) this.#store.show({ state: "reconnecting", retryAt, offline: false });
  }
}
