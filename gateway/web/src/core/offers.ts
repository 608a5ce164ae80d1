/** The subprotocol that the gateway speaks. */
export const SUBPROTOCOL = "crechebooks.dashboard.v1";

/** What has been seen of the tenant's stream. */
export type Position = { epoch: string; seq: number; id?: string };

/** A token as in RFC 7230. The length is bounded because proxies bound the size of a handshake. */
const CARRIED = /^[\w!#$%&'*+.^`|~-]{1,4096}$/;

/**
 * The subprotocol offers that bring the token, the tenant and the position in the handshake, so that joining takes no further
 * round trip. Null when a handshake can't carry one of them.
 */
export function offers(token: string, tenantId: string | null, position: Position | null): string[] | null {
  const all = [SUBPROTOCOL, `bearer.${token}`];
  if (tenantId !== null) all.push(`tenant.${tenantId}`);
  if (position) all.push(["resume", position.epoch, position.seq, position.id].filter((it) => it !== undefined).join("."));
  return all.every((offer) => CARRIED.test(offer)) ? all : null;
}
