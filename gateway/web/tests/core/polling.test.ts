import { afterEach, expect, test, vi } from "vitest";
import { fetchSnapshot, Polling } from "../../src/core/polling.js";

const fetched = vi.fn();
const ask = (tenantId: string | null = "acorn") => {
  vi.stubGlobal("fetch", fetched);
  return fetchSnapshot(new URL("https://gateway.test/dashboard"), "token", tenantId, new AbortController().signal);
};
const answer = (status: number, body: unknown) => fetched.mockResolvedValueOnce({ ok: status === 200, status, json: async () => body });

afterEach(() => {
  fetched.mockReset();
  vi.unstubAllGlobals();
});

test("every tenth poll tries the WebSocket", () => {
  const polling = new Polling(30);
  const tries = Array.from({ length: 30 }, () => polling.triesSocket());
  expect(tries.flatMap((tried, at) => (tried ? [at + 1] : []))).toEqual([10, 20, 30]);
});

test("a snapshot, a problem, a refusal and a failure are told apart", async () => {
  const snapshot = { tenantId: "acorn", epoch: "e1", seq: 1, metrics: null, payments: null };
  answer(200, snapshot);
  expect(await ask()).toEqual({ snapshot });
  const problem = { code: "tenant_required", detail: "which?", tenants: ["acorn"] };
  answer(400, problem);
  expect(await ask()).toEqual({ problem });
  answer(401, null);
  expect(await ask()).toEqual({ status: 401 });
  fetched.mockRejectedValueOnce(new TypeError("no network"));
  expect(await ask()).toEqual({});
  fetched.mockResolvedValueOnce({ ok: true, status: 200, json: async () => JSON.parse("{") });
  expect(await ask()).toEqual({});
});

test("the tenant is in the URL when it is known, and the token in a header", async () => {
  answer(503, null);
  await ask();
  answer(503, null);
  await ask(null);
  expect(fetched.mock.calls.map(([url]) => String(url))).toEqual([
    "https://gateway.test/dashboard/snapshot?tenantId=acorn",
    "https://gateway.test/dashboard/snapshot",
  ]);
  expect(fetched.mock.calls[0]![1]).toMatchObject({ headers: { authorization: "Bearer token" }, cache: "no-store" });
});
