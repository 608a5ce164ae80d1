import { UnauthorizedError } from "../../src/core/index.js";

const KEPT = "crechebooks.token";
let isDemo = false;

/** Whether this gateway is a demo, which hands out tokens and takes payments. Known after the first token. */
export const inDemo = () => isDemo;

/** The demo hands out tokens; elsewhere somebody has to paste one, which this tab keeps. */
export async function getToken(): Promise<string> {
  const kept = sessionStorage.getItem(KEPT);
  if (kept) return kept;
  const answer = await fetch("/demo/token", { cache: "no-store" });
  if (answer.status >= 500) throw new Error(`no token: status ${answer.status}`);
  if (!answer.ok) throw new UnauthorizedError("Sign in to see your centre.");
  isDemo = true;
  return answer.text();
}

export const signIn = (token: string) => sessionStorage.setItem(KEPT, token);

export const signOut = () => sessionStorage.removeItem(KEPT);
