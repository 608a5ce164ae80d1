/** The subprotocol that the gateway speaks. */
export const SUBPROTOCOL = "crechebooks.dashboard.v1";

/** What has been seen of the tenant's stream. */
export type Position = { epoch: string; seq: number; id?: string };

/** A token as in RFC 7230. */
const CARRIED = /^[\w!#$%&'*+.^`|~-]+$/;
/** Longer offers travel in a message where one is possible: some proxies bound the size of a handshake. */
const LONG = 4096;

/**
 * The subprotocol offers that bring the token, the tenant and the position in the handshake, so that joining takes no further
 * round trip. Null when a handshake can't carry one of them.
 */
export function offers(token: string, tenantId: string | null, position: Position | null): string[] | null {
  const all = [SUBPROTOCOL, `bearer.${token}`];
  if (tenantId !== null) all.push(`tenant.${tenantId}`);
  if (position) all.push(["resume", position.epoch, position.seq, position.id].filter((it) => it !== undefined).join("."));
  // Without a tenant there is no message to join with, so the handshake has to try.
  const tooLong = tenantId !== null && all.some((offer) => offer.length > LONG);
  return !tooLong && all.every((offer) => CARRIED.test(offer)) ? all : null;
}
