const BASE_MS = 1_000;
const CAP_MS = 30_000;

/** The wait before the next attempt after `failures` in a row: full jitter, so that clients cut off together don't reconnect together. */
export function backoff(failures: number, random: () => number = Math.random): number {
  return random() * Math.min(CAP_MS, BASE_MS * 2 ** failures);
}
