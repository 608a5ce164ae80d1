import type { ClientMessage, ErrorData } from "./messages.js";

/** One attempt, and the connection that comes of it; what belongs to it ends with it. */
export class Link {
  readonly abort = new AbortController();
  socket: WebSocket | null = null;
  joinedAt: number | null = null;
  heartbeatMs = 0;
  /** The last one that was shown. */
  token: string | null = null;
  renewedAt = -Infinity;
  /** Whether a `join` message was sent. */
  asked = false;
  /** What the gateway said before it closed. */
  error: ErrorData | null = null;
  #timers = new Map<string, ReturnType<typeof setTimeout>>();

  /** Starts a timer, in place of the one of that name. */
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

  send(message: ClientMessage) {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  end() {
    this.abort.abort();
    for (const name of [...this.#timers.keys()]) this.cancel(name);
    const { socket } = this;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }
}
