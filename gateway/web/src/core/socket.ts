import { backoff } from "./backoff.js";
import type { DashboardEvent } from "./events.js";
import { Link } from "./link.js";
import type { ErrorData, Joined, ServerMessage, SnapshotData } from "./messages.js";
import { offers, type Position, SUBPROTOCOL } from "./offers.js";
import { type ClosedReason, type DashboardState, initialState, ofTenant, type Status, withEvent, withMore, withSnapshot } from "./state.js";

/** From asking for a token to being joined, or from asking for a snapshot to having it. */
const ATTEMPT_LIMIT_MS = 15_000;
/** How long a gateway may take to join by the handshake before it is asked whether it did. */
const HANDSHAKE_JOIN_MS = 2_000;
/** A connection that lasted so long was a good one: the next failure is a first one again. */
const STABLE_MS = 5_000;
/** A link with no heartbeat for so many intervals is dead. */
const SILENT_INTERVALS = 1.5;
/** How soon a `ping` must be answered, when the tab or the network comes back. */
const PING_LIMIT_MS = 5_000;
/** From one renewal to the next, whether it failed or not: the gateway warns 60 s before a token's end. */
const RENEW_AGAIN_MS = 10_000;
/** When the payments are fetched that were folded into figures: not before the gateway's last snapshot is too old to be given out again. */
const UNFOLD_FROM_MS = 1_000;
/** The random share of that wait: all pages of a centre hear of it at once. */
const UNFOLD_SPREAD_MS = 3_000;
const UNFOLD_TRIES = 3;
/** While polling, the socket is tried instead of every so-manieth snapshot. */
const POLLS_PER_TRY = 10;

/** Until a token that is issued anew is younger than a kick, whose clock may be another. */
const REVOKED_MS = 2_000;

/** What closes a socket for good, or not at once (design section 3). */
const UNAUTHORIZED = 4401;
const FORBIDDEN = 4403;
const DISABLED = 4503;

export interface DashboardSocketOptions {
  /** Where the gateway is: `wss://…/dashboard`; on its own origin, and by default, `/dashboard`. */
  url?: string;
  /**
   * The CrecheBooks JWT of whoever looks. Asked at every connect, and a minute before a token ends. A rejection is tried again
   * with backoff, unless it is an {@link UnauthorizedError}.
   */
  getToken: () => Promise<string>;
  /** Whose dashboard. Needed only when the token names several tenants. */
  tenantId?: string;
}

/** Thrown by `getToken` when nobody is signed in: the socket closes, and waits for `connect`. */
export class UnauthorizedError extends Error {
  override name = "UnauthorizedError";
}

/** An error over HTTP (RFC 9457). */
type Problem = { code: string; detail: string; tenants?: string[] };

/** What `GET /dashboard/snapshot` answers; there is no position while live updates are switched off. */
type PlacedSnapshot = SnapshotData & { tenantId: string; epoch: string | null; seq: number | null };

/**
 * A tenant's dashboard, live. Knows nothing of any framework: `subscribe` and `getState` are what stores need.
 *
 * Every event is seen once and in order, across reconnects; where that can't be, the gateway sends a snapshot in its place.
 */
export class DashboardSocket {
  readonly #options: DashboardSocketOptions;
  #state = initialState;
  readonly #listeners = new Set<() => void>();
  readonly #eventListeners = new Set<(event: DashboardEvent) => void>();

  #position: Position | null = null;
  #link: Link | null = null;
  /** The wait for the next attempt or the next snapshot. */
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Whether the gateway set that wait, to spread those who return: waking the tab must not shorten it. */
  #told = false;
  #failures = 0;
  /** Whether payments were folded into figures that only a snapshot has. */
  #folded = false;
  /** Whether the last token was refused. */
  #refused = false;
  /** Whether a gateway has shown that it resumes by handshake. */
  #resumes = false;
  /** Set while live updates are switched off. */
  #polling: { everySeconds: number; polls: number } | null = null;
  /** Set from `connect` to the end; ends the listening to the page. */
  #listening: AbortController | null = null;

  constructor(options: DashboardSocketOptions) {
    this.#options = options;
  }

  getState = (): DashboardState => this.#state;

  /** Calls `listener` after every change of the state. Returns the way to stop it. */
  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  /** Calls `listener` with every event, also with those between two renderings. Returns the way to stop it. */
  onEvent = (listener: (event: DashboardEvent) => void): (() => void) => {
    this.#eventListeners.add(listener);
    return () => void this.#eventListeners.delete(listener);
  };

  /** Connects, and stays so. On a socket that is connected or about to be it does nothing. Throws when `url` is none. */
  connect = (): void => {
    if (this.#listening) return;
    this.#url("ws");
    this.#listening = new AbortController();
    this.#failures = 0;
    this.#refused = false;
    this.#listen(this.#listening.signal);
    this.#show({ state: "connecting" });
    this.#open();
  };

  /** Closes; no timer and no listener remains. `connect` resumes where it was. */
  disconnect = (): void => {
    if (this.#listening) this.#stop("disconnected", "disconnected");
  };

  /** Takes an alert away; a newer one of the same parent is shown again. */
  dismissAlert = (id: string): void => {
    const alerts = this.#state.alerts.filter((alert) => alert.id !== id);
    if (alerts.length < this.#state.alerts.length) this.#set({ ...this.#state, alerts });
  };

  // The connection

  #open() {
    this.#wait();
    if (isOffline()) return this.#lose();
    this.#link = new Link();
    void this.#attempt(this.#link);
  }

  async #attempt(link: Link) {
    link.after("attempt", ATTEMPT_LIMIT_MS, () => this.#lose());
    const token = await this.#token(link);
    if (token === null) return;
    link.token = token;
    const tenantId = this.#tenant();
    const offered = offers(token, tenantId, this.#position);
    if (!offered && tenantId === null) return this.#refuse("a handshake can't carry this token");
    let socket: WebSocket;
    try {
      socket = new WebSocket(this.#url("ws"), offered ?? SUBPROTOCOL);
    } catch (error) {
      return this.#refuse(String(error));
    }
    link.socket = socket;
    socket.onopen = () => {
      if (!offered) this.#join(link);
      // Gateways of the version before wait for a message when a token names several tenants: the answer to a ping tells.
      else if (tenantId !== null) link.after("handshake", HANDSHAKE_JOIN_MS, () => link.send({ event: "ping" }));
    };
    socket.onmessage = ({ data }) => this.#receive(link, data);
    socket.onclose = ({ code }) => this.#closed(code, link.error?.message);
  }

  /** Joins by message, where the handshake could not, or did not. */
  #join(link: Link) {
    const tenantId = this.#tenant();
    if (link.asked || tenantId === null) return;
    link.asked = true;
    const { seq: lastSeq, epoch, id: lastId } = this.#position ?? {};
    // What is undefined is not sent.
    link.send({ event: "join", data: { tenantId, token: link.token!, lastSeq, epoch, lastId } });
  }

  /** Whose dashboard, unless only the token knows. */
  #tenant = (): string | null => this.#options.tenantId ?? this.#state.tenantId;

  /** A token, unless none comes, or it comes too late for this link. */
  async #token(link: Link): Promise<string | null> {
    try {
      const token = await this.#options.getToken();
      return link === this.#link ? token : null;
    } catch (error) {
      if (link !== this.#link) return null;
      // A socket that is joined has its token still.
      if (error instanceof UnauthorizedError && link.joinedAt === null) this.#stop("unauthorized", error.message);
      else if (link.joinedAt === null) this.#lose();
      else link.after("renew", RENEW_AGAIN_MS, () => void this.#renew(link));
      return null;
    }
  }

  /** Shows the gateway another token, if there is one: a `getToken` that caches may give the last one again. */
  async #renew(link: Link) {
    const renewLater = (ms: number) => link.after("renew", ms, () => void this.#renew(link));
    const wait = link.renewedAt + RENEW_AGAIN_MS - Date.now();
    if (wait > 0) return renewLater(wait);
    link.renewedAt = Date.now();
    const token = await this.#token(link);
    if (token === null) return;
    const { tenantId } = this.#state;
    // A token with little left is warned of before the first `joined`.
    if (tenantId === null || link.joinedAt === null || token === link.token) return renewLater(RENEW_AGAIN_MS);
    link.token = token;
    link.send({ event: "join", data: { tenantId, token } });
  }

  #closed(code: number, message = `closed with code ${code}`) {
    if (code === UNAUTHORIZED) this.#refuse(message);
    else if (code === FORBIDDEN) this.#forbid(message);
    else if (code === DISABLED) this.#disable(this.#polling?.everySeconds ?? 30);
    else this.#lose();
  }

  /** A token is not good: another is asked for, once. */
  #refuse(message: string) {
    if (this.#refused) return this.#stop("unauthorized", message);
    // A kick revokes what is issued in its own second too: a token asked for at once would be refused for good.
    const revoked = this.#link?.error?.code === "kicked" ? REVOKED_MS : 0;
    this.#rest();
    this.#refused = true;
    // An operator's disconnect meets many at once.
    this.#openIn(revoked + backoff(this.#failures++), true);
  }

  #forbid(message: string) {
    // The next token may be somebody else's.
    this.#position = null;
    this.#state = { ...this.#state, tenantId: null };
    this.#stop("forbidden", message);
  }

  /** The link is of no use any more; the next attempt is due later. */
  #lose() {
    const told = this.#link?.error?.retryInMs;
    this.#rest();
    const offline = isOffline();
    if (this.#polling) return offline ? undefined : this.#pollLater(this.#polling.everySeconds);
    if (offline) return this.#show({ state: "reconnecting", retryAt: null, offline });
    this.#openIn(told ?? backoff(this.#failures++), told !== undefined);
  }

  #openIn(ms: number, told: boolean) {
    const show = (retryAt: number | null) => {
      if (!this.#polling) this.#show({ state: "reconnecting", retryAt, offline: false });
    };
    this.#wait(ms, () => {
      show(null);
      this.#open();
    });
    this.#told = told;
    show(Date.now() + ms);
  }

  #stop(reason: ClosedReason, message: string, tenants?: readonly string[]) {
    this.#rest();
    this.#polling = null;
    this.#listening?.abort();
    this.#listening = null;
    this.#show({ state: "closed", reason, message, ...(tenants && { tenants }) });
  }

  /** Ends the link, and whatever is waited for. */
  #rest() {
    const joinedAt = this.#link?.joinedAt ?? null;
    if (joinedAt !== null && Date.now() - joinedAt >= STABLE_MS) this.#failures = 0;
    this.#link?.end();
    this.#link = null;
    this.#wait();
  }

  #wait(ms?: number, then?: () => void) {
    clearTimeout(this.#timer);
    this.#told = false;
    this.#timer = ms === undefined ? undefined : setTimeout(() => then?.(), ms);
  }

  // What the gateway says

  #receive(link: Link, text: unknown) {
    let message: ServerMessage;
    try {
      message = JSON.parse(String(text));
    } catch {
      return this.#lose();
    }
    switch (message.type) {
      case "joined":
        return this.#joined(link, message.data);
      case "resync":
        return this.#place(message.data, message.data);
      case "heartbeat":
        return this.#heartbeat(link, message.data.epoch, message.data.seq);
      case "token_expiring":
        return void this.#renew(link);
      case "degraded":
        return this.#show({ state: "degraded", ...message.data });
      case "restored":
        return this.#show({ state: "connected" });
      case "disabled":
        return this.#disable(message.data.pollSeconds);
      case "error":
        link.error = message.data;
        return message.data.code === "tenant_required" ? this.#choose(link, message.data) : undefined;
      default:
        // A message of a later version has no place in ours.
        if ("seq" in message) this.#event(link, message);
    }
  }

  #joined(link: Link, joined: Joined) {
    const renewal = link.joinedAt !== null;
    if (!renewal && !link.asked && !this.#heeds(joined)) {
      link.send({ event: "leave" });
      return this.#join(link);
    }
    // By handshake it was resumed; or by message it could not be either, so that the reason was no gateway of the version before.
    if (this.#position && joined.recovered !== link.asked) this.#resumes = true;
    link.cancel("attempt");
    link.cancel("handshake");
    this.#refused = false;
    link.heartbeatMs = joined.heartbeatSeconds * 1000;
    this.#polling = null;
    this.#wait();
    if (!joined.recovered || !this.#position) {
      this.#state = ofTenant(this.#state, joined.tenantId);
      this.#place(joined, joined);
    }
    // A renewal says nothing of the engine's health.
    if (renewal) return;
    link.joinedAt = Date.now();
    this.#expectHeartbeat(link);
    if (this.#folded) this.#unfold(link);
    this.#show({ state: "connected" });
  }

  /** Whether a join by handshake is to the chosen tenant, from the position: gateways of the version before know only the token. */
  #heeds({ tenantId, epoch, seq, recovered }: Joined): boolean {
    const position = this.#position;
    const missed = !this.#resumes && position && !recovered && epoch === position.epoch && seq > position.seq;
    return !missed && tenantId === (this.#tenant() ?? tenantId);
  }

  /** The token names several tenants: without a choice there is nothing to join. */
  #choose(link: Link, { message, tenants }: ErrorData) {
    if (this.#tenant() === null) this.#stop("tenant_required", message, tenants);
    else this.#join(link);
  }

  /** Starts from a snapshot and the position that it is of. */
  #place({ epoch, seq }: { epoch: string | null; seq: number | null }, snapshot: SnapshotData) {
    this.#position = epoch === null || seq === null ? null : { epoch, seq };
    if (snapshot.payments) this.#folded = false;
    this.#set(withSnapshot(this.#state, snapshot, Date.now()));
  }

  #event(link: Link, event: DashboardEvent) {
    const { seq, id } = event;
    if (link.joinedAt === null || !this.#position || seq <= this.#position.seq) return;
    // Between the gateway and here something went missing: the log has it.
    if (seq > this.#position.seq + 1) return this.#lose();
    this.#position = { epoch: this.#position.epoch, seq, id };
    this.#set(withEvent(this.#state, event, Date.now()));
    if (event.type === "metrics_updated" && event.data.condensed?.payment_received) this.#unfold(link);
    for (const listener of [...this.#eventListeners]) listener(event);
  }

  /** Fetches payments that were folded into figures: once for all that come until then. */
  #unfold(link: Link, tries = UNFOLD_TRIES) {
    this.#folded = true;
    if (link.awaits("unfold")) return;
    link.after("unfold", UNFOLD_FROM_MS + Math.random() * UNFOLD_SPREAD_MS, async () => {
      const answer = await this.#askForSnapshot(link, link.token!).catch(() => null);
      const snapshot: PlacedSnapshot | null = answer?.ok ? await answer.json().catch(() => null) : null;
      if (link !== this.#link) return;
      if (snapshot?.payments) {
        this.#folded = false;
        this.#set(withMore(this.#state, snapshot, Date.now()));
      } else if (tries > 1) this.#unfold(link, tries - 1);
    });
  }

  #heartbeat(link: Link, epoch: string | null, seq: number | null) {
    if (link.joinedAt === null) return epoch === null ? this.#join(link) : undefined;
    link.cancel("ping");
    this.#expectHeartbeat(link);
    const position = this.#position;
    if (epoch !== null && position && (epoch !== position.epoch || seq !== position.seq)) this.#lose();
  }

  #expectHeartbeat(link: Link) {
    link.after("heartbeat", SILENT_INTERVALS * link.heartbeatMs, () => this.#lose());
  }

  // Live updates are switched off: the gateway's plan for rolling back, and the only time when anything is polled

  #disable(everySeconds: number) {
    this.#rest();
    const tried = this.#polling !== null;
    this.#polling = { everySeconds, polls: 0 };
    this.#show({ state: "polling", everySeconds });
    // The first snapshot is wanted now; after a try in vain it has time.
    if (tried) this.#pollLater(everySeconds);
    else this.#poll();
  }

  #pollLater(everySeconds: number) {
    this.#wait(everySeconds * 1000, () => this.#poll());
  }

  #poll() {
    if (!this.#polling || isOffline()) return;
    this.#rest();
    this.#polling.polls = (this.#polling.polls + 1) % POLLS_PER_TRY;
    if (this.#polling.polls === 0) return this.#open();
    this.#link = new Link();
    void this.#fetchSnapshot(this.#link);
  }

  async #fetchSnapshot(link: Link) {
    link.after("attempt", ATTEMPT_LIMIT_MS, () => this.#lose());
    const token = await this.#token(link);
    if (token === null) return;
    try {
      const answer = await this.#askForSnapshot(link, token);
      const snapshot: PlacedSnapshot | null = answer.ok ? await answer.json() : null;
      const problem: Problem | null = answer.status === 400 ? await answer.json() : null;
      if (link !== this.#link) return;
      if (problem?.code === "tenant_required") return this.#stop("tenant_required", problem.detail, problem.tenants);
      if (answer.status === 401) return this.#refuse("the token is missing, invalid or expired");
      if (answer.status === 403) return this.#forbid("the token does not name this tenant");
      if (snapshot) {
        this.#refused = false;
        this.#state = ofTenant(this.#state, snapshot.tenantId);
        this.#place(snapshot, snapshot);
      }
    } catch {
      // The next snapshot makes up for this one.
    }
    if (link === this.#link) this.#lose();
  }

  #askForSnapshot(link: Link, token: string): Promise<Response> {
    const tenantId = this.#tenant();
    const url = this.#url("http");
    url.pathname += "/snapshot";
    if (tenantId !== null) url.searchParams.set("tenantId", tenantId);
    const headers = { authorization: `Bearer ${token}` };
    return fetch(url, { headers, cache: "no-store", signal: link.abort.signal });
  }

  // The page

  #listen(signal: AbortSignal) {
    if (typeof window === "undefined") return;
    const on = (target: EventTarget, name: string, then: (event: Event) => void) =>
      target.addEventListener(name, then, { signal });
    on(window, "online", () => this.#wake());
    on(window, "offline", () => this.#lose());
    on(document, "visibilitychange", () => document.visibilityState === "visible" && this.#wake());
    // A page with an open socket can't be kept for "back"; without it, it is live again at once.
    on(window, "pagehide", (event) => (event as PageTransitionEvent).persisted && this.#sleep());
    on(window, "pageshow", (event) => (event as PageTransitionEvent).persisted && this.#wake());
  }

  #sleep() {
    this.#rest();
    if (!this.#polling) this.#show({ state: "reconnecting", retryAt: null, offline: false });
  }

  /** Somebody looks, or the network is back: no wait is worth it now, except one that the gateway asked for. */
  #wake() {
    const link = this.#link;
    if (link?.joinedAt) {
      link.after("ping", PING_LIMIT_MS, () => this.#lose());
      link.send({ event: "ping" });
    } else if (!link && !this.#told) {
      if (this.#polling) return this.#poll();
      if (!isOffline()) this.#show({ state: "reconnecting", retryAt: null, offline: false });
      this.#open();
    }
  }

  // The state

  #url(scheme: "ws" | "http"): URL {
    const base = typeof location === "undefined" ? undefined : location.href;
    const url = new URL(this.#options.url ?? "/dashboard", base);
    url.protocol = url.protocol.replace(/^(ws|http)/, scheme);
    return url;
  }

  #show(status: Status) {
    this.#set({ ...this.#state, status });
  }

  #set(state: DashboardState) {
    this.#state = state;
    for (const listener of [...this.#listeners]) listener();
  }
}

function isOffline(): boolean {
  return typeof navigator !== "undefined" && navigator.onLine === false;
}
