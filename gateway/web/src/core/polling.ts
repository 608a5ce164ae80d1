import type { SnapshotData } from "./messages.js";

/** While polling, every tenth time tries the WebSocket instead of a snapshot. */
const POLLS_PER_TRY = 10;

/** The plan while live updates are switched off at the gateway. Nothing is polled at any other time. */
export class Polling {
  #polls = 0;

  constructor(readonly everySeconds: number) {}

  /** Whether the WebSocket is to be tried now, and not a snapshot fetched. */
  triesSocket(): boolean {
    this.#polls = (this.#polls + 1) % POLLS_PER_TRY;
    return this.#polls === 0;
  }
}

/** A snapshot with its position, which is null while live updates are switched off. */
type PlacedSnapshot = SnapshotData & { tenantId: string; epoch: string | null; seq: number | null };

/** An error over HTTP (RFC 9457). */
type Problem = { code: string; detail: string; tenants?: string[] };

/** The answer to a request for a snapshot: without a `snapshot` or a `problem` it was neither. */
type Answer = { status?: number; snapshot?: PlacedSnapshot; problem?: Problem };

/** Asks the gateway at `url` for a snapshot over HTTP. */
export async function fetchSnapshot(url: URL, token: string, tenantId: string | null, signal: AbortSignal): Promise<Answer> {
  url.pathname += "/snapshot";
  if (tenantId !== null) url.searchParams.set("tenantId", tenantId);
  try {
    const answer = await fetch(url, { headers: { authorization: `Bearer ${token}` }, cache: "no-store", signal });
    const { status } = answer;
    if (answer.ok) return { snapshot: await answer.json() };
    return status === 400 ? { problem: await answer.json() } : { status };
  } catch {
    // The next request makes up for this one.
    return {};
  }
}
