export interface DashboardSocketOptions {
  /** The gateway's URL, `wss://…/dashboard`; on the page's own origin, and by default, `/dashboard`. */
  url?: string;
  /**
   * Returns the user's CrecheBooks JWT. Called at every connect, and a minute before a token ends. A rejection is tried again with
   * backoff, unless it is an {@link UnauthorizedError}.
   */
  getToken: () => Promise<string>;
  /** The tenant of the dashboard. Needed only when the token names several tenants. */
  tenantId?: string;
}

/** Thrown by `getToken` when no user is signed in: the socket closes, and waits for `connect`. */
export class UnauthorizedError extends Error {
  override name = "UnauthorizedError";
}

/** The gateway's URL for WebSockets or for HTTP. Throws when the option is not a URL. */
export function gatewayUrl({ url: option }: DashboardSocketOptions, scheme: "ws" | "http"): URL {
  const base = typeof location === "undefined" ? undefined : location.href;
  const url = new URL(option ?? "/dashboard", base);
  url.protocol = url.protocol.replace(/^(ws|http)/, scheme);
  return url;
}
