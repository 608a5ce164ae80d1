import type { ClientMessage, ServerMessage } from "./messages.js";

/** From asking for a token to being joined, or from asking for a snapshot to having it. */
const ATTEMPT_LIMIT_MS = 15_000;
/** A link without a heartbeat for this many intervals is dead. */
const SILENT_INTERVALS = 1.5;
/** How soon a `ping` must be answered. */
const PING_LIMIT_MS = 5_000;

/** One attempt to reach the gateway, and its one WebSocket. Its timers and requests end with it, and no event comes after that. */
export class Link {
  readonly #failed: () => void;
  readonly #abort = new AbortController();
  /** Aborted when the link ends. */
  readonly signal = this.#abort.signal;
  readonly #timers = new Map<string, ReturnType<typeof setTimeout>>();
  #socket: WebSocket | null = null;
  #heartbeatMs = 0;

  /** Calls `failed` when the attempt takes too long, the link falls silent, or the gateway sends text that is not JSON. */
  constructor(failed: () => void) {
    this.#failed = failed;
    this.after("attempt", ATTEMPT_LIMIT_MS, failed);
  }

  /** Opens the WebSocket. Throws when an offer has characters that no handshake can carry. */
  open(
    url: URL,
    protocols: string | string[],
    opened: () => void,
    received: (message: ServerMessage) => void,
    closed: (code: number) => void,
  ) {
    const socket = new WebSocket(url, protocols);
    this.#socket = socket;
    socket.onopen = opened;
    socket.onclose = ({ code }) => closed(code);
    socket.onmessage = ({ data }) => {
      let message: ServerMessage;
      try {
        message = JSON.parse(String(data));
      } catch {
        return this.#failed();
      }
      received(message);
    };
  }

  send(message: ClientMessage) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  /** The gateway has joined it: the attempt is over, and heartbeats come at this interval. */
  joined(heartbeatSeconds: number) {
    this.cancel("attempt");
    this.cancel("handshake");
    this.#heartbeatMs = heartbeatSeconds * 1000;
  }

  /** The gateway gave a sign of life: the next heartbeat is due. */
  heard() {
    this.cancel("ping");
    this.after("heartbeat", SILENT_INTERVALS * this.#heartbeatMs, this.#failed);
  }

  /** Asks for a sign of life at once. */
  ping() {
    this.after("ping", PING_LIMIT_MS, this.#failed);
    this.send({ event: "ping" });
  }

  /** Starts a timer, in place of the one with this name. */
  after(name: string, ms: number, then: () => void) {
    this.cancel(name);
    const fire = () => {
      this.#timers.delete(name);
      then();
    };
    this.#timers.set(name, setTimeout(fire, ms));
  }

  awaits(name: string): boolean {
    return this.#timers.has(name);
  }

  cancel(name: string) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  end() {
    this.#abort.abort();
    for (const name of [...this.#timers.keys()]) this.cancel(name);
    const socket = this.#socket;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }
}
