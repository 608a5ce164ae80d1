import type { DashboardEvent } from "./events.js";
import { Link } from "./link.js";
import type { ErrorData, Heartbeat, Joined, ServerMessage } from "./messages.js";
import { offers, SUBPROTOCOL } from "./offers.js";
import { type DashboardSocketOptions, gatewayUrl, UnauthorizedError } from "./options.js";
import { fetchSnapshot } from "./polling.js";
import type { ClosedReason } from "./state.js";
import type { Store } from "./store.js";

/** How long a gateway may take to join by the handshake before it is asked whether it did. */
const HANDSHAKE_JOIN_MS = 2_000;
/** The time between two renewals, also after a failure: the gateway warns 60 s before a token's end. */
const RENEW_AGAIN_MS = 10_000;
/** When the payments are fetched that were folded into figures: the gateway gives a snapshot out again for a second. */
const UNFOLD_FROM_MS = 1_000;
/** The random part of that wait: all pages of a centre get the same event at once. */
const UNFOLD_SPREAD_MS = 3_000;
const UNFOLD_TRIES = 3;

/** Close codes after which the client does more than reconnect (gateway/docs/protocol.md). */
export const UNAUTHORIZED = 4401;
export const FORBIDDEN = 4403;
export const DISABLED = 4503;

/** What a session tells its client. After all but `joined` it is of no use any more. */
export interface SessionEvents {
  joined(): void;
  /** The snapshot over HTTP is shown. */
  refreshed(): void;
  /** Ended with a close code, or as if with that code: the client decides how it goes on. Without one, the connection was lost. */
  ended(code?: number, message?: string, pollSeconds?: number): void;
  /** Another attempt is of no use. */
  stopped(reason: ClosedReason, message: string, tenants?: readonly string[]): void;
}

/** One attempt and what follows from it: a joined WebSocket until it ends, or one snapshot over HTTP. */
export class Session {
  readonly #options: DashboardSocketOptions;
  readonly #store: Store;
  readonly #on: SessionEvents;
  readonly #link: Link;
  /** The last token that the gateway got. */
  #token = "";
  #renewedAt = -Infinity;
  /** A `join` message was sent. */
  #asked = false;
  joinedAt: number | null = null;
  /** The gateway's `error` message before it closed. */
  error: ErrorData | null = null;

  constructor(options: DashboardSocketOptions, store: Store, on: SessionEvents) {
    this.#options = options;
    this.#store = store;
    this.#on = on;
    this.#link = new Link(() => on.ended());
  }

  /** Connects and joins. */
  async open() {
    const token = await this.#newToken();
    if (token === null) return;
    this.#token = token;
    const tenantId = this.#tenant();
    const offered = offers(token, tenantId, this.#store.position);
    if (!offered && tenantId === null) return this.#on.ended(UNAUTHORIZED, "a handshake can't carry this token");
    const opened = () => {
      if (!offered) this.#join();
      // Older gateways wait for a message when a token names several tenants: the answer to a ping tells.
      else if (tenantId !== null) this.#link.after("handshake", HANDSHAKE_JOIN_MS, () => this.#link.send({ event: "ping" }));
    };
    try {
      this.#link.open(gatewayUrl(this.#options, "ws"), offered ?? SUBPROTOCOL, opened, this.#receive, this.#closed);
    } catch (error) {
      this.#on.ended(UNAUTHORIZED, String(error));
    }
  }

  /** Shows one snapshot over HTTP, and ends. */
  async refresh() {
    const token = await this.#newToken();
    if (token === null) return;
    this.#token = token;
    const { status, snapshot, problem } = await this.#fetchSnapshot();
    if (this.#ended()) return;
    if (problem?.code === "tenant_required") return this.#on.stopped("tenant_required", problem.detail, problem.tenants);
    if (status === 401) return this.#on.ended(UNAUTHORIZED, "the token is missing, invalid or expired");
    if (status === 403) return this.#on.ended(FORBIDDEN, "the token does not name this tenant");
    if (!snapshot) return this.#on.ended();
    this.#store.startFrom(snapshot, snapshot, snapshot.tenantId);
    if (!this.#ended()) this.#on.refreshed();
  }

  /** Asks a joined gateway for a sign of life. */
  ping() {
    this.#link.ping();
  }

  end() {
    this.#link.end();
  }

  #ended = (): boolean => this.#link.signal.aborted;

  /** The chosen or known tenant; null when only the token knows it. */
  #tenant = (): string | null => this.#options.tenantId ?? this.#store.state.tenantId;

  #fetchSnapshot = () => fetchSnapshot(gatewayUrl(this.#options, "http"), this.#token, this.#tenant(), this.#link.signal);

  /** A new token; null when there is none, or when it comes too late for this session. */
  async #newToken(): Promise<string | null> {
    try {
      const token = await this.#options.getToken();
      return this.#ended() ? null : token;
    } catch (error) {
      if (this.#ended()) return null;
      // A joined session still has a valid token.
      if (this.joinedAt !== null) this.#renewLater();
      else if (error instanceof UnauthorizedError) this.#on.stopped("unauthorized", error.message);
      else this.#on.ended();
      return null;
    }
  }

  /** Sends the gateway a new token, unless `getToken` returns the last one again, as a cache does. */
  async #renew() {
    const wait = this.#renewedAt + RENEW_AGAIN_MS - Date.now();
    if (wait > 0) return this.#renewLater(wait);
    this.#renewedAt = Date.now();
    const token = await this.#newToken();
    if (token === null) return;
    const { tenantId } = this.#store.state;
    // The gateway may warn before the first `joined` when a token ends soon.
    if (tenantId === null || this.joinedAt === null || token === this.#token) return this.#renewLater();
    this.#token = token;
    this.#link.send({ event: "join", data: { tenantId, token } });
  }

  #renewLater(ms = RENEW_AGAIN_MS) {
    this.#link.after("renew", ms, () => void this.#renew());
  }

  /** Joins by message, when the handshake can't or did not. */
  #join() {
    const tenantId = this.#tenant();
    if (this.#asked || tenantId === null) return;
    this.#asked = true;
    const { seq: lastSeq, epoch, id: lastId } = this.#store.position ?? {};
    // JSON leaves out what is undefined.
    this.#link.send({ event: "join", data: { tenantId, token: this.#token, lastSeq, epoch, lastId } });
  }

  #closed = (code: number) => this.#on.ended(code, this.error?.message ?? `closed with code ${code}`);

  #receive = (message: ServerMessage) => {
    switch (message.type) {
      case "joined":
        return this.#joined(message.data);
      case "resync":
        return this.#store.startFrom(message.data, message.data);
      case "heartbeat":
        return this.#heartbeat(message.data);
      case "token_expiring":
        return void this.#renew();
      case "degraded":
        return this.#store.show({ state: "degraded", ...message.data });
      case "restored":
        return this.#store.show({ state: "connected" });
      case "disabled":
        return this.#on.ended(DISABLED, "", message.data.pollSeconds);
      case "error":
        this.error = message.data;
        return message.data.code === "tenant_required" ? this.#choose(message.data) : undefined;
      default:
        // Later versions may have types that are not events: they have no seq.
        if ("seq" in message) this.#event(message);
    }
  };

  #joined(joined: Joined) {
    const renewal = this.joinedAt !== null;
    if (!renewal && !this.#asked && !this.#isAsOffered(joined)) {
      this.#link.send({ event: "leave" });
      return this.#join();
    }
    // The handshake resumed, so the gateway is not an older one; or a message could not resume either, so that was not the reason.
    if (this.#store.position && joined.recovered !== this.#asked) this.#store.resumes = true;
    this.#link.joined(joined.heartbeatSeconds);
    this.#on.joined();
    if (!joined.recovered || !this.#store.position) this.#store.startFrom(joined, joined, joined.tenantId);
    // The answer to a renewed token says nothing about the engine's health. A listener of the snapshot may have disconnected.
    if (renewal || this.#ended()) return;
    this.joinedAt = Date.now();
    this.#link.heard();
    if (this.#store.folded) this.#unfold();
    this.#store.show({ state: "connected" });
  }

  /** Whether the handshake joined the chosen tenant, from the position. Older gateways read only the token from the handshake. */
  #isAsOffered({ tenantId, epoch, seq, recovered }: Joined): boolean {
    const { position, resumes } = this.#store;
    const missed = !resumes && position && !recovered && epoch === position.epoch && seq > position.seq;
    return !missed && tenantId === (this.#tenant() ?? tenantId);
  }

  /** The token names several tenants: joins the chosen one, or stops. */
  #choose({ message, tenants }: ErrorData) {
    if (this.#tenant() === null) this.#on.stopped("tenant_required", message, tenants);
    else this.#join();
  }

  #event(event: DashboardEvent) {
    if (this.joinedAt === null) return;
    const outcome = this.#store.event(event);
    // An event was lost between the gateway and here: the gateway's log has it.
    if (outcome === "hole") this.#on.ended();
    // A listener may have disconnected.
    else if (outcome === "folded" && !this.#ended()) this.#unfold();
  }

  /** Fetches payments that were folded into figures, once for all such events until then. */
  #unfold(tries = UNFOLD_TRIES) {
    if (this.#link.awaits("unfold")) return;
    this.#link.after("unfold", UNFOLD_FROM_MS + Math.random() * UNFOLD_SPREAD_MS, async () => {
      const { snapshot } = await this.#fetchSnapshot();
      if (this.#ended()) return;
      if (snapshot?.payments) this.#store.add(snapshot);
      else if (tries > 1) this.#unfold(tries - 1);
    });
  }

  #heartbeat({ epoch, seq }: Heartbeat) {
    if (this.joinedAt === null) return epoch === null ? this.#join() : undefined;
    this.#link.heard();
    const { position } = this.#store;
    if (epoch !== null && position && (epoch !== position.epoch || seq !== position.seq)) this.#on.ended();
  }
}
