import { UnauthorizedError } from "../../src/core/index.js";

const KEPT = "crechebooks.token";
let till = false;

/** Whether payments can be recorded on this page, as in a demo. Known after the first token. */
export const hasTill = () => till;

/** A token of the demo; without a demo, the token that the user has pasted, which this tab keeps. */
export async function getToken(): Promise<string> {
  const kept = sessionStorage.getItem(KEPT);
  if (kept) return kept;
  const answer = await fetch("/demo/token", { cache: "no-store" });
  if (!answer.ok) throw new Error(`no token: status ${answer.status}`);
  if (answer.status === 204) throw new UnauthorizedError("Sign in to see your centre.");
  const session: { token: string; till?: boolean } = await answer.json();
  till = session.till ?? false;
  return session.token;
}

/** Whether this tab keeps a token. */
export const isSignedIn = () => Boolean(sessionStorage.getItem(KEPT));

export const signIn = (token: string) => sessionStorage.setItem(KEPT, token);

export const signOut = () => sessionStorage.removeItem(KEPT);
