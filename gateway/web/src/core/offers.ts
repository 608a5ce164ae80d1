/** The subprotocol that the gateway speaks. */
export const SUBPROTOCOL = "crechebooks.dashboard.v1";

/** The last event that was seen of the tenant's stream. */
export type Position = { epoch: string; seq: number; id?: string };

/** A token as in RFC 7230. */
const CARRIED = /^[\w!#$%&'*+.^`|~-]+$/;
/** Longer offers are sent in a message when that is possible: some proxies limit the size of a handshake. */
const LONG = 4096;

/**
 * The subprotocol offers that carry the token, the tenant and the position in the handshake, so that joining takes no further
 * round trip. Null when a handshake can't carry one of them.
 */
export function offers(token: string, tenantId: string | null, position: Position | null): string[] | null {
  const all = [SUBPROTOCOL, `bearer.${token}`];
  if (tenantId !== null) all.push(`tenant.${tenantId}`);
  if (position) all.push(["resume", position.epoch, position.seq, position.id].filter((it) => it !== undefined).join("."));
  // A `join` message needs a tenant: without one, only the handshake can join.
  const tooLong = tenantId !== null && all.some((offer) => offer.length > LONG);
  return !tooLong && all.every((offer) => CARRIED.test(offer)) ? all : null;
}
