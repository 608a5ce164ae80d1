import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";

/** The repository's root. */
export const root = fileURLToPath(new URL("../../../../..", import.meta.url)).replace(/\/$/, "");

/** Polls until there is a result. Use it to wait only: a promise about time must be measured. */
export async function eventually<T>(what: string, ask: () => T | Promise<T>, patienceMs = 20_000): Promise<NonNullable<T>> {
  const end = Date.now() + patienceMs;
  for (let failure: unknown; ; await delay(20)) {
    try {
      const answer = await ask();
      if (answer) return answer;
    } catch (error) {
      failure = error;
    }
    if (Date.now() > end) throw new Error(`in vain: ${what}`, { cause: failure });
  }
}

/**
 * A free port that stays free between a server's end and its next start: it is below the range from which the system takes ports for
 * outgoing connections.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    const server = createServer().listen(port, "127.0.0.1");
    const free = await once(server, "listening").catch(() => null);
    server.close();
    if (free) return port;
  }
}

const listens = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });

/** A program that listens on a port. It ends with the tests at the latest. */
export class Server {
  #child: ChildProcess | null = null;
  #output = "";

  constructor(
    readonly port: number,
    readonly program: string,
    readonly args: string[],
    readonly options: { env?: Record<string, string>; uid?: number; gid?: number } = {},
  ) {}

  /** Starts the program unless it runs. */
  async start(): Promise<this> {
    if (this.#child) return this;
    const { env, ...as } = this.options;
    const child = spawn(this.program, this.args, { cwd: "/", env: { PATH: process.env.PATH, ...env }, stdio: ["ignore", "pipe", "pipe"], ...as });
    this.#child = child;
    const keep = (chunk: Buffer) => (this.#output = (this.#output + chunk).slice(-4_000));
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    await eventually(`${this.program} listens`, () => {
      if (child.exitCode !== null) throw new Error(`${this.program} ended: ${this.#output}`);
      return listens(this.port);
    });
    return this;
  }

  async stop(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  }
}

/** A directory that is removed after the test. */
export function scratch(): { path: string; remove: () => void } {
  const path = mkdtempSync(join(tmpdir(), "dashboard-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}
