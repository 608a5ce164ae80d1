import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type DashboardEvent, DashboardSocket, UnauthorizedError } from "../../src/core/index.js";
import { alert, figures, giveBack, join, lastSocket, metrics, openSockets, payment, recent, setOnline, takeOver, TestSocket } from "../gateway.js";

let client: DashboardSocket;
let tokens: number;
const getToken = vi.fn(async () => `token-${++tokens}`);
const state = () => client.getState().status.state;
const after = (ms: number) => vi.advanceTimersByTimeAsync(ms);
const shownPayments = () => client.getState().payments.map((it) => it.paymentId);

beforeEach(() => {
  takeOver();
  tokens = 0;
  getToken.mockClear();
  client = new DashboardSocket({ url: "wss://gateway.test/dashboard", getToken });
});

afterEach(() => {
  client.disconnect();
  expect(vi.getTimerCount()).toBe(0);
  expect(openSockets()).toBe(0);
  giveBack();
});

describe("connecting", () => {
  test("the token goes by the handshake while the tenant is unknown, and never in the URL", async () => {
    client.connect();
    expect(state()).toBe("connecting");
    const socket = await join();
    expect(socket.protocols).toEqual(["crechebooks.dashboard.v1", "bearer.token-1"]);
    expect(String(socket.url)).toBe("wss://gateway.test/dashboard");
    expect(socket.sent).toEqual([]);
    expect(state()).toBe("connected");
    expect(client.getState().tenantId).toBe("acorn");
  });

  test("b62 a chosen tenant is joined by the handshake", async () => {
    client = new DashboardSocket({ url: "wss://gateway.test/dashboard", getToken, tenantId: "acorn" });
    client.connect();
    const socket = await join();
    expect(socket.protocols).toEqual(["crechebooks.dashboard.v1", "bearer.token-1", "tenant.acorn"]);
    expect(socket.sent).toEqual([]);
    await after(60_000);
    expect(socket.sent).toEqual([]);
  });

  test.each([
    ["a token with a space", "not a token", "acorn"],
    ["a token that is too large for a proxy", "x".repeat(5_000), "acorn"],
    ["a tenant with a comma", "token", "acorn,oak"],
  ])("b62 %s comes by message", async (_, token, tenantId) => {
    client = new DashboardSocket({ url: "wss://gateway.test/dashboard", getToken: async () => token, tenantId });
    client.connect();
    const socket = await join({ tenantId });
    expect(socket.protocols).toEqual(["crechebooks.dashboard.v1"]);
    expect(socket.sent).toEqual([{ event: "join", data: { tenantId, token } }]);
    expect(state()).toBe("connected");
  });

  test("an invalid url is an error at once", () => {
    const lost = new DashboardSocket({ url: "wss://", getToken });
    expect(lost.connect).toThrow(TypeError);
    expect(lost.getState().status).toMatchObject({ state: "closed", reason: "idle" });
  });

  test("connect on a connected socket does nothing", async () => {
    client.connect();
    client.connect();
    await join();
    client.connect();
    await after(0);
    expect(TestSocket.all).toHaveLength(1);
    expect(getToken).toHaveBeenCalledTimes(1);
  });

  test("an attempt without an answer is given up after 15 s", async () => {
    client.connect();
    await after(0);
    lastSocket().open();
    await after(14_999);
    expect(state()).toBe("connecting");
    await after(1);
    expect(state()).toBe("reconnecting");
    await after(500);
    expect(TestSocket.all).toHaveLength(2);
  });

  test("a getToken that never answers is given up as well", async () => {
    getToken.mockReturnValueOnce(new Promise(() => {}));
    client.connect();
    await after(15_000 + 500);
    expect(getToken).toHaveBeenCalledTimes(2);
    await join();
    expect(state()).toBe("connected");
  });

  test("a getToken that fails is asked again with backoff; UnauthorizedError stops", async () => {
    getToken.mockRejectedValueOnce(new Error("no network"));
    client.connect();
    await after(0);
    expect(state()).toBe("reconnecting");
    getToken.mockRejectedValueOnce(new UnauthorizedError("sign in"));
    await after(500);
    expect(client.getState().status).toEqual({ state: "closed", reason: "unauthorized", message: "sign in" });
    await after(60_000);
    expect(getToken).toHaveBeenCalledTimes(2);
  });

  test("a token that no handshake can carry counts as refused", async () => {
    getToken.mockResolvedValueOnce("not a token").mockResolvedValueOnce("no token either");
    client.connect();
    await after(500);
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "unauthorized" });
  });
});

describe("state", () => {
  test("a snapshot fills it, events change it, and unchanged parts keep their identity", async () => {
    client.connect();
    const socket = await join({ seq: 7, metrics: metrics(100), payments: [recent("p2"), recent("p1")] });
    expect(client.getState().metrics?.totalOutstanding).toBe(100);
    expect(shownPayments()).toEqual(["p2", "p1"]);
    const { metrics: before } = client.getState();
    socket.event(payment(8, "p3"));
    expect(shownPayments()).toEqual(["p3", "p2", "p1"]);
    expect(client.getState().metrics).toBe(before);
    const { payments } = client.getState();
    socket.event(figures(9, 50));
    expect(client.getState().metrics?.totalOutstanding).toBe(50);
    expect(client.getState().payments).toBe(payments);
    expect(client.getState().lastEvent?.seq).toBe(9);
  });

  test("a payment that the snapshot has already is shown once", async () => {
    client.connect();
    const socket = await join({ seq: 7, payments: [recent("p2"), recent("p1")] });
    socket.event(payment(8, "p2"));
    expect(shownPayments()).toEqual(["p2", "p1"]);
  });

  test("an event is seen once: seqs that were seen are dropped", async () => {
    const seen: number[] = [];
    client.onEvent((event) => seen.push(event.seq));
    client.connect();
    const socket = await join({ seq: 7 });
    for (const seq of [7, 8, 8, 3, 9]) socket.event(payment(seq));
    expect(seen).toEqual([8, 9]);
    expect(shownPayments()).toEqual(["pay-9", "pay-8"]);
  });

  test("alerts stay until dismissed, the latest of each parent", async () => {
    client.connect();
    const socket = await join();
    socket.event(alert(1, "thandi"));
    socket.event(alert(2, "pieter"));
    socket.event(alert(3, "thandi", 200));
    expect(client.getState().alerts.map((it) => [it.id, it.totalArrears])).toEqual([["id-3", 200], ["id-2", 100]]);
    client.dismissAlert("id-3");
    const { alerts } = client.getState();
    expect(alerts.map((it) => it.id)).toEqual(["id-2"]);
    client.dismissAlert("unknown");
    expect(client.getState().alerts).toBe(alerts);
    socket.event(alert(4, "thandi"));
    expect(client.getState().alerts).toHaveLength(2);
  });

  test("the numbers of payments and alerts are bounded", async () => {
    client.connect();
    const socket = await join();
    for (let seq = 1; seq <= 300; seq++) socket.event(seq % 2 ? payment(seq) : alert(seq, `parent-${seq}`));
    expect(client.getState().payments).toHaveLength(50);
    expect(client.getState().alerts).toHaveLength(100);
  });

  test("resync replaces it, and the stream continues from there", async () => {
    client.connect();
    const socket = await join({ seq: 7, metrics: metrics(100), payments: [recent("p1")] });
    socket.tell("resync", { epoch: "e2", seq: 3, metrics: metrics(1), payments: [recent("q1")] });
    expect(client.getState().metrics?.totalOutstanding).toBe(1);
    expect(shownPayments()).toEqual(["q1"]);
    socket.event(payment(4));
    expect(shownPayments()).toEqual(["pay-4", "q1"]);
  });

  test("nothing of one tenant stays when another is joined", async () => {
    client.connect();
    const socket = await join({ metrics: metrics(100), payments: [recent("p1")] });
    socket.event(alert(1, "thandi"));
    socket.tell("joined", { tenantId: "oak", epoch: "e9", seq: 5, recovered: false, heartbeatSeconds: 30, metrics: null, payments: null });
    expect(client.getState()).toMatchObject({ tenantId: "oak", metrics: null, payments: [], alerts: [], lastEvent: null });
  });

  test("f56 payments that come late are listed by when they were received", async () => {
    client.connect();
    const minute = (at: number) => `2026-11-24T12:${String(at).padStart(2, "0")}:00.123456Z`;
    // The snapshot has the newest 20 of 30; the backlog of the outage comes after it, from the oldest.
    const payments = Array.from({ length: 20 }, (_, at) => ({ ...recent(`p${30 - at}`), receivedAt: minute(30 - at) }));
    const socket = await join({ seq: 0, payments });
    for (let number = 1; number <= 30; number++) socket.event({ ...payment(number, `p${number}`), timestamp: minute(number) });
    expect(shownPayments()).toEqual(Array.from({ length: 30 }, (_, at) => `p${30 - at}`));
    // Of the same moment: the one that came last is on top.
    socket.event({ ...payment(31), timestamp: minute(30) });
    expect(shownPayments().slice(0, 2)).toEqual(["pay-31", "p30"]);
  });

  test("f58 older figures never replace newer ones, as an event or in a snapshot", async () => {
    client.connect();
    const at = (second: number, outstanding: number) => ({ ...metrics(outstanding), asOf: `2026-11-24T12:00:0${second}.5Z` });
    const outstanding = () => client.getState().metrics?.totalOutstanding;
    const socket = await join({ metrics: at(5, 100) });
    socket.event({ ...figures(1, 0), data: at(4, 90) } as DashboardEvent);
    expect(outstanding()).toBe(100);
    socket.tell("resync", { epoch: "e1", seq: 1, metrics: at(3, 80), payments: null });
    expect(outstanding()).toBe(100);
    // The same moment, written otherwise.
    socket.event({ ...figures(2, 0), data: { ...at(5, 110), asOf: "2026-11-24T14:00:05.500000+02:00" } } as DashboardEvent);
    expect(outstanding()).toBe(110);
    socket.event({ ...figures(3, 0), data: at(6, 120) } as DashboardEvent);
    expect(outstanding()).toBe(120);
  });

  test("f58 figures from the future do not stay for good", async () => {
    client.connect();
    const at = (time: string, outstanding: number) => ({ ...metrics(outstanding), asOf: `2026-11-24T${time}Z` });
    const outstanding = () => client.getState().metrics?.totalOutstanding;
    const socket = await join({ metrics: at("13:00:00", 100) });
    expect(outstanding()).toBe(100);
    socket.event({ ...figures(1, 0), data: at("12:01:30", 90) } as DashboardEvent);
    expect(outstanding()).toBe(90);
    // Clocks differ a little: these are newer all the same.
    socket.event({ ...figures(2, 0), data: at("12:01:20", 80) } as DashboardEvent);
    expect(outstanding()).toBe(90);
  });

  test("messages of later versions are ignored, but events count", async () => {
    client.connect();
    const socket = await join();
    socket.onmessage?.({ data: JSON.stringify({ type: "weather", timestamp: "x", data: {} }) });
    socket.onmessage?.({ data: JSON.stringify({ type: "refund_made", seq: 1, id: "id-1", timestamp: "x", data: {} }) });
    socket.event(payment(2));
    expect(shownPayments()).toEqual(["pay-2"]);
    expect(state()).toBe("connected");
  });
});

describe("reconnecting", () => {
  test("full jitter: at most 1 s, doubled with each failure up to 30 s", async () => {
    vi.mocked(Math.random).mockReturnValue(0.999999);
    client.connect();
    const waits: number[] = [];
    for (let attempt = 0; attempt < 8; attempt++) {
      await after(0);
      lastSocket().drop(1006);
      const { status } = client.getState();
      if (status.state !== "reconnecting" || status.retryAt === null) throw new Error("not reconnecting");
      waits.push(status.retryAt - Date.now());
      await after(waits.at(-1)! + 1);
    }
    expect(waits.map(Math.round)).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    vi.mocked(Math.random).mockReturnValue(0);
    lastSocket().drop(1006);
    await after(0);
    expect(TestSocket.all).toHaveLength(10);
  });

  test("only a connection that lasted 5 s counts as good", async () => {
    const dropAfter = async (ms: number) => {
      await join();
      await after(ms);
      lastSocket().drop(1006);
      const { status } = client.getState();
      const wait = status.state === "reconnecting" ? status.retryAt! - Date.now() : NaN;
      await after(wait);
      return wait;
    };
    client.connect();
    expect([await dropAfter(4_900), await dropAfter(4_900), await dropAfter(5_000), await dropAfter(0)]).toEqual([500, 1_000, 500, 1_000]);
  });

  test("it resumes after the last event, and keeps its state", async () => {
    client.connect();
    (await join({ seq: 7, payments: [recent("p1")] })).event(payment(8));
    lastSocket().drop(1006);
    await after(500);
    const socket = await join({ recovered: true, seq: 10 });
    expect(socket.protocols).toEqual(["crechebooks.dashboard.v1", "bearer.token-2", "tenant.acorn", "resume.e1.8.id-8"]);
    expect(socket.sent).toEqual([]);
    for (const seq of [9, 10, 11]) socket.event(payment(seq));
    expect(shownPayments()).toEqual(["pay-11", "pay-10", "pay-9", "pay-8", "p1"]);
    expect(TestSocket.all).toHaveLength(2);
  });

  test("when events can't be recovered, the snapshot replaces its state", async () => {
    client.connect();
    (await join({ seq: 7, payments: [recent("p1")] })).event(payment(8));
    lastSocket().drop(1006);
    await after(500);
    const socket = await join({ recovered: false, epoch: "e2", seq: 2, payments: [recent("q1")] });
    socket.event(payment(3));
    expect(shownPayments()).toEqual(["pay-3", "q1"]);
  });

  test("an event after a hole is not shown: the client resumes", async () => {
    client.connect();
    (await join({ seq: 7 })).event(payment(9));
    expect(shownPayments()).toEqual([]);
    expect(state()).toBe("reconnecting");
    await after(500);
    const socket = await join({ recovered: true, seq: 9 });
    expect(socket.resumes).toBe("e1.7");
  });

  test.each([1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 1015, 4400, 4408, 4409, 4413, 4429])(
    "close code %i: it reconnects with backoff, and resumes",
    async (code) => {
      client.connect();
      (await join({ seq: 1 })).drop(code);
      expect(client.getState().status).toEqual({ state: "reconnecting", retryAt: Date.now() + 500, offline: false });
      await after(500);
      expect((await join({ recovered: true })).resumes).toBe("e1.1");
      expect(state()).toBe("connected");
    },
  );

  test.each([1012, 1013])("close code %i after retryInMs: it reconnects at that moment, also when the tab is shown before", async (code) => {
    client.connect();
    const socket = await join();
    socket.tell("error", { code: "restart", message: "the gateway restarts", retryInMs: 12_345 });
    socket.drop(code);
    document.dispatchEvent(new Event("visibilitychange"));
    await after(12_344);
    expect(TestSocket.all).toHaveLength(1);
    await after(1);
    expect(TestSocket.all).toHaveLength(2);
  });

  test("4401 asks for a new token; refused again, it stops with the reason", async () => {
    client.connect();
    (await join()).drop(4401);
    expect(state()).toBe("reconnecting");
    await after(500);
    expect(getToken).toHaveBeenCalledTimes(2);
    const socket = lastSocket();
    socket.open();
    socket.tell("error", { code: "unauthorized", message: "the token has expired" });
    socket.drop(4401);
    expect(client.getState().status).toEqual({ state: "closed", reason: "unauthorized", message: "the token has expired" });
    await after(120_000);
    expect(TestSocket.all).toHaveLength(2);
    client.connect();
    await join();
    expect(state()).toBe("connected");
  });

  test("b65 a kick: the next token is asked for when the kick's second is over", async () => {
    client.connect();
    const socket = await join();
    socket.tell("error", { code: "kicked", message: "disconnected by an operator" });
    socket.drop(4401);
    await after(2_499);
    expect(getToken).toHaveBeenCalledTimes(1);
    await after(1);
    expect(getToken).toHaveBeenCalledTimes(2);
  });

  test("4401 after a join counts as a first one, and is retried with growing waits", async () => {
    client.connect();
    const waits: number[] = [];
    for (let again = 0; again < 4; again++) {
      (await join()).drop(4401);
      const { status } = client.getState();
      waits.push(status.state === "reconnecting" ? status.retryAt! - Date.now() : NaN);
      await after(waits.at(-1)!);
    }
    expect(waits).toEqual([500, 1_000, 2_000, 4_000]);
  });

  test("4403 stops; another user starts anew", async () => {
    client.connect();
    const socket = await join({ seq: 3 });
    socket.tell("error", { code: "wrong_tenant", message: "the token does not name this tenant" });
    socket.drop(4403);
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "forbidden" });
    await after(120_000);
    expect(TestSocket.all).toHaveLength(1);
    client.connect();
    expect((await join({ tenantId: "oak" })).protocols).toContain("bearer.token-2");
  });

  test("disconnect ends it, connect resumes", async () => {
    client.connect();
    (await join({ seq: 1 })).event(payment(2));
    client.disconnect();
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "disconnected" });
    expect(lastSocket().readyState).toBe(3);
    client.connect();
    expect((await join({ recovered: true, seq: 2 })).resumes).toBe("e1.2.id-2");
    expect(shownPayments()).toEqual(["pay-2"]);
  });

  test("a listener that disconnects when the snapshot comes is obeyed", async () => {
    client.connect();
    await after(0);
    client.subscribe(() => client.getState().metrics && client.disconnect());
    await join({ metrics: metrics(1) });
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "disconnected" });
    await after(60_000);
    expect(TestSocket.all).toHaveLength(1);
  });

  test("disconnect during getToken opens no connection", async () => {
    client.connect();
    client.disconnect();
    await after(60_000);
    expect(TestSocket.all).toHaveLength(0);
  });

  test("1,000 cuts of every kind under events: 1,000 recoveries, nothing missed, nothing twice", async () => {
    const seen: number[] = [];
    client.onEvent((event) => seen.push(event.seq));
    client.connect();
    let head = 0;
    let recoveries = -1;
    const codes = [1001, 1006, 1011, 1012, 1013, 4400, 4401, 4408, 4409, 4413, 4429];
    for (let cut = 0; cut <= 1_000; cut++) {
      await after(0);
      const socket = lastSocket();
      socket.open();
      const from = Number(socket.resumes?.split(".")[1] ?? 0);
      socket.tell("joined", { tenantId: "acorn", epoch: "e1", seq: head, recovered: from > 0, heartbeatSeconds: 30, metrics: null, payments: null });
      for (let seq = from + 1; seq <= head; seq++) socket.event(payment(seq));
      expect(state()).toBe("connected");
      recoveries++;
      // A stable link every other time, so that a refused token is a first one.
      await after(5_000);
      for (let more = 0; more < 3; more++) socket.event(payment(++head));
      // What the link swallows before it breaks comes back from the log.
      head += cut % 3;
      if (cut % 4 === 0) socket.event(payment(head + 2));
      else if (cut % 4 === 1) socket.tell("heartbeat", { epoch: "e1", seq: head + 1 });
      else if (cut % 4 === 2) await after(45_000);
      else socket.drop(codes[cut % codes.length]!);
      if (state() === "connected") socket.drop(1006);
      await after(30_000);
    }
    expect(recoveries).toBe(1_000);
    // The last cut's loss is still in the log.
    expect(seen).toEqual(Array.from({ length: seen.length }, (_, at) => at + 1));
    expect(head - seen.length).toBeLessThan(5);
  }, 30_000);
});

describe("b62 a tenant or a position that the handshake did not carry", () => {
  const withTenant = () => (client = new DashboardSocket({ url: "wss://gateway.test/dashboard", getToken, tenantId: "oak" }));
  const joined = (socket: TestSocket, more: object) =>
    socket.tell("joined", { tenantId: "acorn", epoch: "e1", seq: 0, recovered: false, heartbeatSeconds: 30, metrics: null, payments: null, ...more });

  test("an older gateway, a token of several tenants: its answer to a ping says that it waits", async () => {
    withTenant().connect();
    await after(0);
    const socket = lastSocket();
    socket.open();
    await after(2_000);
    expect(socket.sent).toEqual([{ event: "ping" }]);
    socket.tell("heartbeat", { epoch: null, seq: null });
    expect(socket.sent.slice(1)).toEqual([{ event: "join", data: { tenantId: "oak", token: "token-1" } }]);
    joined(socket, { tenantId: "oak" });
    expect(client.getState()).toMatchObject({ tenantId: "oak", status: { state: "connected" } });
    expect(TestSocket.all).toHaveLength(1);
  });

  test("a gateway that is only slow to join is not asked twice", async () => {
    withTenant().connect();
    await after(0);
    const socket = lastSocket();
    socket.open();
    await after(2_500);
    // The room's heartbeat may come before `joined`.
    socket.tell("heartbeat", { epoch: "e1", seq: 4 });
    joined(socket, { tenantId: "oak", seq: 4 });
    socket.tell("heartbeat", { epoch: "e1", seq: 4 });
    expect(socket.sent).toEqual([{ event: "ping" }]);
    expect(state()).toBe("connected");
  });

  test("an older gateway joins anew: the position goes by message, and every event is seen once", async () => {
    const seen: number[] = [];
    client.onEvent((event) => seen.push(event.seq));
    client.connect();
    (await join({ seq: 7, payments: [recent("p1")] })).event(payment(8));
    lastSocket().drop(1006);
    await after(500);
    const socket = await join({ recovered: false, seq: 10, payments: [recent("q1")] });
    expect(socket.sent).toEqual([{ event: "leave" }, { event: "join", data: { tenantId: "acorn", token: "token-2", lastSeq: 8, epoch: "e1", lastId: "id-8" } }]);
    // Events come until the gateway has left the room.
    socket.event(payment(11));
    socket.tell("heartbeat", { epoch: "e1", seq: 11 });
    expect(state()).toBe("reconnecting");
    socket.tell("left", { tenantId: "acorn" });
    joined(socket, { recovered: true, seq: 11 });
    for (const seq of [9, 10, 11, 12]) socket.event(payment(seq));
    expect(seen).toEqual([8, 9, 10, 11, 12]);
    expect(shownPayments()).toEqual(["pay-12", "pay-11", "pay-10", "pay-9", "pay-8", "p1"]);
    expect(state()).toBe("connected");
    expect(TestSocket.all).toHaveLength(2);
  });

  test("an older gateway that can't recover either is asked once by message, and then the snapshot counts", async () => {
    client.connect();
    await join({ seq: 7 });
    lastSocket().drop(1006);
    await after(500);
    const socket = await join({ recovered: false, seq: 900, payments: [recent("q1")] });
    joined(socket, { seq: 901, payments: [recent("q2")] });
    expect(socket.sent.map(({ event }) => event)).toEqual(["leave", "join"]);
    expect(shownPayments()).toEqual(["q2"]);
    socket.event(payment(902));
    expect(shownPayments()).toEqual(["pay-902", "q2"]);
    // From now on the client knows that the gateway is not an older one.
    lastSocket().drop(1006);
    await after(5_000);
    expect((await join({ recovered: false, seq: 1900, payments: [recent("q3")] })).sent).toEqual([]);
    expect(shownPayments()).toEqual(["q3"]);
  });

  test("the position is not sent again when nothing was missed, or when the epoch is another", async () => {
    client.connect();
    await join({ seq: 7 });
    for (const position of [{ epoch: "e1", seq: 7 }, { epoch: "e2", seq: 900 }]) {
      lastSocket().drop(1006);
      await after(5_000);
      expect((await join({ recovered: false, ...position })).sent).toEqual([]);
      expect(state()).toBe("connected");
    }
  });

  test("an older gateway joins the token's tenant: the chosen one is asked for", async () => {
    withTenant().connect();
    const socket = await join({ tenantId: "acorn", payments: [recent("p1")] });
    expect(shownPayments()).toEqual([]);
    expect(socket.sent).toEqual([{ event: "leave" }, { event: "join", data: { tenantId: "oak", token: "token-1" } }]);
    socket.tell("error", { code: "wrong_tenant", message: "the token does not name this tenant" });
    socket.drop(4403);
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "forbidden" });
  });

  test("a token of several tenants, and none chosen: it stops, and says which there are", async () => {
    client.connect();
    await after(0);
    lastSocket().open();
    lastSocket().tell("error", { code: "tenant_required", message: "the token names several tenants", tenants: ["acorn", "oak"] });
    expect(client.getState().status).toEqual({ state: "closed", reason: "tenant_required", message: "the token names several tenants", tenants: ["acorn", "oak"] });
    await after(60_000);
    expect(TestSocket.all).toHaveLength(1);
  });

  test("a token too long for many proxies goes by message when the tenant is known, otherwise by handshake", async () => {
    const token = "x".repeat(5_000);
    const connect = async (tenantId?: string) => {
      client = new DashboardSocket({ url: "wss://gateway.test/dashboard", getToken: async () => token, tenantId });
      client.connect();
      await after(0);
      lastSocket().open();
    };
    await connect();
    expect(lastSocket().protocols).toEqual(["crechebooks.dashboard.v1", `bearer.${token}`]);
    client.disconnect();
    await connect("oak");
    expect(lastSocket().protocols).toEqual(["crechebooks.dashboard.v1"]);
    expect(lastSocket().sent).toEqual([{ event: "join", data: { tenantId: "oak", token } }]);
  });

  test("a tenant that the gateway could not read in the handshake is sent by message", async () => {
    withTenant().connect();
    await after(0);
    const socket = lastSocket();
    socket.open();
    socket.tell("error", { code: "tenant_required", message: "the token names several tenants", tenants: ["acorn", "oak"] });
    expect(socket.sent).toEqual([{ event: "join", data: { tenantId: "oak", token: "token-1" } }]);
    joined(socket, { tenantId: "oak" });
    expect(state()).toBe("connected");
  });

  test("a token that ends soon is not renewed before the join", async () => {
    client.connect();
    await join({ seq: 7 });
    lastSocket().drop(1006);
    await after(500);
    lastSocket().open();
    lastSocket().tell("token_expiring", { expiresInSeconds: 50 });
    await after(0);
    expect(lastSocket().sent).toEqual([]);
  });
});

describe("a silent link", () => {
  test("a link without a heartbeat for 1.5 intervals is replaced", async () => {
    client.connect();
    const socket = await join({ heartbeatSeconds: 30 });
    await after(44_000);
    socket.tell("heartbeat", { epoch: "e1", seq: 0 });
    await after(44_999);
    expect(state()).toBe("connected");
    await after(1);
    expect(state()).toBe("reconnecting");
    expect(socket.readyState).toBe(3);
    await after(500);
    expect(TestSocket.all).toHaveLength(2);
  });

  test.each([
    ["a seq that has not come", { epoch: "e1", seq: 8 }],
    ["another epoch", { epoch: "e2", seq: 7 }],
  ])("a heartbeat with %s: the last hop lost something, resume", async (_, head) => {
    client.connect();
    const socket = await join({ seq: 7 });
    socket.tell("heartbeat", { epoch: "e1", seq: 7 });
    expect(state()).toBe("connected");
    socket.tell("heartbeat", head);
    expect(state()).toBe("reconnecting");
  });

  test("a link with text that is not JSON is replaced", async () => {
    client.connect();
    const socket = await join();
    socket.onmessage?.({ data: "{" });
    expect(state()).toBe("reconnecting");
  });
});

describe("the engine's health", () => {
  test("degraded and restored are shown, with the time since when", async () => {
    client.connect();
    const socket = await join();
    socket.tell("degraded", { reason: "redis", since: "2026-11-24T12:04:05Z" });
    expect(client.getState().status).toEqual({ state: "degraded", reason: "redis", since: "2026-11-24T12:04:05Z" });
    socket.tell("restored", { reason: "redis", since: "2026-11-24T12:05:00Z" });
    expect(state()).toBe("connected");
  });

  test("a renewed token does not end `degraded`", async () => {
    client.connect();
    const socket = await join();
    socket.tell("degraded", { reason: "redis", since: "2026-11-24T12:04:05Z" });
    socket.tell("joined", { tenantId: "acorn", epoch: "e1", seq: 0, recovered: true, heartbeatSeconds: 30, metrics: null, payments: null });
    expect(state()).toBe("degraded");
  });
});

describe("the token's end", () => {
  test("f64 a getToken that caches is called every 10 s, and no token is sent twice", async () => {
    const getToken = vi.fn(async () => (++tokens < 4 ? "cached" : "fresh"));
    client = new DashboardSocket({ url: "wss://gateway.test/dashboard", getToken });
    client.connect();
    const socket = await join({ seq: 3 });
    // An older gateway warns with every answer.
    for (let warnings = 0; warnings < 100; warnings++) socket.tell("token_expiring", { expiresInSeconds: 50 });
    await after(0);
    expect(getToken).toHaveBeenCalledTimes(2);
    await after(9_999);
    expect(getToken).toHaveBeenCalledTimes(2);
    await after(1);
    expect(getToken).toHaveBeenCalledTimes(3);
    expect(socket.sent).toEqual([]);
    await after(10_000);
    expect(socket.sent).toEqual([{ event: "join", data: { tenantId: "acorn", token: "fresh" } }]);
    socket.tell("joined", { tenantId: "acorn", epoch: "e1", seq: 3, recovered: true, heartbeatSeconds: 30, metrics: null, payments: null });
    socket.tell("heartbeat", { epoch: "e1", seq: 3 });
    await after(30_000);
    expect(getToken).toHaveBeenCalledTimes(4);
    expect(TestSocket.all).toHaveLength(1);
  });

  test("f64 a token that is renewed again and again is renewed every 10 s at most", async () => {
    client.connect();
    const socket = await join({ seq: 3 });
    const answer = () => socket.tell("token_expiring", { expiresInSeconds: 30 });
    const send = socket.send.bind(socket);
    socket.send = (text) => (send(text), answer());
    answer();
    await after(0);
    expect(getToken).toHaveBeenCalledTimes(2);
    await after(29_999);
    expect(getToken).toHaveBeenCalledTimes(4);
  });

  test("token_expiring is answered with a new token, on the same socket", async () => {
    client.connect();
    const socket = await join({ seq: 3 });
    socket.tell("token_expiring", { expiresInSeconds: 60 });
    await after(0);
    expect(socket.sent).toEqual([{ event: "join", data: { tenantId: "acorn", token: "token-2" } }]);
    socket.tell("joined", { tenantId: "acorn", epoch: "e1", seq: 3, recovered: true, heartbeatSeconds: 30, metrics: null, payments: null });
    expect(state()).toBe("connected");
    expect(TestSocket.all).toHaveLength(1);
  });

  test("a token that ends soon is warned of before `joined`, and renewed after it", async () => {
    client.connect();
    await after(0);
    lastSocket().open();
    lastSocket().tell("token_expiring", { expiresInSeconds: 59 });
    const socket = await join();
    expect(socket.sent).toEqual([]);
    await after(10_000);
    expect(socket.sent).toEqual([{ event: "join", data: { tenantId: "acorn", token: "token-3" } }]);
    expect(TestSocket.all).toHaveLength(1);
  });

  test.each([new Error("no network"), new UnauthorizedError("signed out")])("a renewal that fails (%s) is tried again while the link lives", async (error) => {
    client.connect();
    const socket = await join();
    getToken.mockRejectedValueOnce(error);
    socket.tell("token_expiring", { expiresInSeconds: 60 });
    await after(9_999);
    expect(socket.sent).toEqual([]);
    await after(1);
    expect(socket.sent).toHaveLength(1);
    expect(state()).toBe("connected");
  });
});

describe("the page", () => {
  const show = (visible: boolean) => {
    vi.spyOn(document, "visibilityState", "get").mockReturnValue(visible ? "visible" : "hidden");
    document.dispatchEvent(new Event("visibilitychange"));
  };
  const page = (name: string, persisted: boolean) => window.dispatchEvent(Object.assign(new Event(name), { persisted }));

  test("offline: the link is given up, and nothing is tried until the network is back; then at once", async () => {
    client.connect();
    await join();
    setOnline(false);
    window.dispatchEvent(new Event("offline"));
    expect(client.getState().status).toEqual({ state: "reconnecting", retryAt: null, offline: true });
    await after(600_000);
    show(true);
    await after(0);
    expect(TestSocket.all).toHaveLength(1);
    setOnline(true);
    window.dispatchEvent(new Event("online"));
    await join();
    expect(state()).toBe("connected");
    expect(TestSocket.all).toHaveLength(2);
  });

  test("offline at the first connect, and while waiting", async () => {
    setOnline(false);
    client.connect();
    await after(60_000);
    expect(TestSocket.all).toHaveLength(0);
    expect(client.getState().status).toMatchObject({ state: "reconnecting", offline: true });
    setOnline(true);
    window.dispatchEvent(new Event("online"));
    (await join()).drop(1006);
    setOnline(false);
    window.dispatchEvent(new Event("offline"));
    await after(60_000);
    expect(TestSocket.all).toHaveLength(1);
  });

  test("a tab that is shown again does not wait", async () => {
    vi.mocked(Math.random).mockReturnValue(1);
    client.connect();
    (await join()).drop(1006);
    show(false);
    await after(10);
    expect(TestSocket.all).toHaveLength(1);
    show(true);
    await after(0);
    expect(TestSocket.all).toHaveLength(2);
  });

  test("a tab that is shown again pings, and replaces a link that does not answer for 5 s", async () => {
    client.connect();
    const socket = await join();
    show(true);
    expect(socket.sent).toEqual([{ event: "ping" }]);
    socket.tell("heartbeat", { epoch: "e1", seq: 0 });
    await after(5_000);
    expect(state()).toBe("connected");
    show(true);
    await after(5_000);
    expect(state()).toBe("reconnecting");
  });

  test("the socket is closed for the back-forward cache, and opened when the page is back", async () => {
    client.connect();
    const socket = await join({ seq: 4 });
    page("pagehide", true);
    expect(socket.readyState).toBe(3);
    expect(vi.getTimerCount()).toBe(0);
    page("pageshow", true);
    expect((await join({ recovered: true, seq: 4 })).resumes).toBe("e1.4");
    expect(state()).toBe("connected");
  });

  test("closing removes every listener", async () => {
    const added = vi.spyOn(window, "addEventListener");
    client.connect();
    await join();
    expect(added).toHaveBeenCalled();
    client.disconnect();
    for (const event of ["online", "pageshow"]) page(event, true);
    show(true);
    await after(60_000);
    expect(TestSocket.all).toHaveLength(1);
    expect(state()).toBe("closed");
  });
});

describe("condensed events", () => {
  const fetched = vi.fn();
  const answer = (data: object) => ({ ok: true, status: 200, json: async () => ({ tenantId: "acorn", epoch: "e1", seq: 9, metrics: metrics(70), payments: [recent("p2")], ...data }) });
  const condensed = (seq: number, condensed: object, figures: object = metrics(80)) =>
    lastSocket().event({ type: "metrics_updated", seq, id: `id-${seq}`, timestamp: "2026-11-24T12:00:00Z", data: { ...figures, condensed } } as DashboardEvent);
  beforeEach(() => {
    fetched.mockReset();
    fetched.mockImplementation(async () => answer({}));
    vi.stubGlobal("fetch", fetched);
  });

  test("f50 folded payments are fetched with the snapshot, once for all events of the wait, and the stream continues", async () => {
    client.connect();
    const socket = await join({ seq: 7, payments: [recent("p1")] });
    condensed(8, { payment_received: 37 });
    condensed(9, { payment_received: 2, arrears_alert: 1 });
    await after(2_499);
    expect(fetched).not.toHaveBeenCalled();
    socket.event({ ...payment(10), timestamp: "2026-11-24T12:00:01Z" });
    await after(1);
    const [url, { headers }] = fetched.mock.calls[0]!;
    expect(String(url)).toBe("https://gateway.test/dashboard/snapshot?tenantId=acorn");
    expect(headers).toEqual({ authorization: "Bearer token-1" });
    // The payment that came during the wait stays, and so does the stream's position.
    expect(shownPayments()).toEqual(["pay-10", "p2", "p1"]);
    socket.event({ ...payment(11), timestamp: "2026-11-24T12:00:02Z" });
    expect(shownPayments()[0]).toBe("pay-11");
    await after(10_000);
    expect(fetched).toHaveBeenCalledTimes(1);
    expect(getToken).toHaveBeenCalledTimes(1);
    expect(state()).toBe("connected");
  });

  test("f50 a thousand pages ask at random moments, and not before the gateway has a new snapshot", async () => {
    vi.mocked(Math.random).mockReturnValueOnce(0).mockReturnValueOnce(0.999);
    client.connect();
    await join();
    condensed(1, { payment_received: 1 });
    await after(999);
    expect(fetched).not.toHaveBeenCalled();
    await after(1);
    expect(fetched).toHaveBeenCalledTimes(1);
    condensed(2, { payment_received: 1 });
    await after(3_990);
    expect(fetched).toHaveBeenCalledTimes(1);
    await after(10);
    expect(fetched).toHaveBeenCalledTimes(2);
  });

  test("f50 nothing is fetched for other folded events", async () => {
    client.connect();
    await join();
    condensed(1, { invoice_status_changed: 60 });
    lastSocket().event(figures(2, 60));
    await after(20_000);
    expect(fetched).not.toHaveBeenCalled();
  });

  test("f50 a failed snapshot is tried twice more, and again on the next link", async () => {
    fetched.mockRejectedValueOnce(new TypeError("no network"));
    fetched.mockResolvedValueOnce({ ok: false, status: 503 });
    fetched.mockResolvedValueOnce(answer({ metrics: null, payments: null }));
    client.connect();
    await join({ heartbeatSeconds: 300 });
    condensed(1, { payment_received: 37 });
    await after(60_000);
    expect(fetched).toHaveBeenCalledTimes(3);
    expect(shownPayments()).toEqual([]);
    lastSocket().drop(1006);
    await after(500);
    await join({ recovered: true, seq: 1 });
    await after(2_500);
    expect(shownPayments()).toEqual(["p2"]);
  });

  test("f50 null figures never replace figures", async () => {
    client.connect();
    await join({ metrics: metrics(100) });
    const none = { totalOutstanding: null, totalArrears: null, accountsInArrears: null, paymentsToday: null, amountReceivedToday: null, invoicesByStatus: null, asOf: "2026-11-24T12:00:09Z" };
    condensed(1, { arrears_alert: 60 }, none);
    expect(client.getState().metrics?.totalOutstanding).toBe(100);
    expect(client.getState().lastEvent?.seq).toBe(1);
  });
});

describe("switched off", () => {
  const fetched = vi.fn();
  const snapshot = (seq: number) => ({ ok: true, status: 200, json: async () => ({ tenantId: "acorn", epoch: "e1", seq, metrics: metrics(seq), payments: [recent(`p${seq}`)] }) });
  beforeEach(() => {
    fetched.mockReset();
    fetched.mockImplementation(async () => snapshot(fetched.mock.calls.length));
    vi.stubGlobal("fetch", fetched);
  });
  const disable = async () => {
    client.connect();
    const socket = await join();
    socket.tell("disabled", { pollSeconds: 30 });
    socket.drop(4503);
    await after(0);
  };

  test("nothing polls while live", async () => {
    client.connect();
    await join();
    lastSocket().drop(1006);
    await after(20_000);
    expect(fetched).not.toHaveBeenCalled();
  });

  test("it shows the snapshot at once and every 30 s, with the token in a header", async () => {
    await disable();
    expect(client.getState().status).toEqual({ state: "polling", everySeconds: 30 });
    const [url, { headers }] = fetched.mock.calls[0]!;
    expect(String(url)).toBe("https://gateway.test/dashboard/snapshot?tenantId=acorn");
    expect(headers).toEqual({ authorization: "Bearer token-2" });
    expect(client.getState().metrics?.totalOutstanding).toBe(1);
    await after(29_999);
    expect(fetched).toHaveBeenCalledTimes(1);
    await after(1);
    expect(shownPayments()).toEqual(["p2"]);
    expect(TestSocket.all).toHaveLength(1);
  });

  test("a close with 4503 alone starts polling", async () => {
    client.connect();
    (await join()).drop(4503);
    await after(0);
    expect(state()).toBe("polling");
  });

  test("after a failed snapshot the next one is fetched as usual", async () => {
    fetched.mockRejectedValueOnce(new TypeError("no network"));
    fetched.mockResolvedValueOnce({ ok: false, status: 503 });
    await disable();
    await after(60_000);
    expect(fetched).toHaveBeenCalledTimes(3);
    expect(shownPayments()).toEqual(["p3"]);
    expect(state()).toBe("polling");
  });

  test("b77 a token of several tenants, and none chosen: it stops, and says which there are", async () => {
    const tenants = ["acorn", "oak"];
    fetched.mockResolvedValueOnce({ ok: false, status: 400, json: async () => ({ code: "tenant_required", detail: "which?", tenants }) });
    await disable();
    expect(client.getState().status).toEqual({ state: "closed", reason: "tenant_required", message: "which?", tenants });
  });

  test("401 asks for a new token once, 403 stops", async () => {
    fetched.mockResolvedValueOnce({ ok: false, status: 401 });
    await disable();
    expect(state()).toBe("polling");
    await after(500);
    expect(state()).toBe("polling");
    await join();
    expect(state()).toBe("connected");
    lastSocket().tell("disabled", { pollSeconds: 30 });
    fetched.mockResolvedValueOnce({ ok: false, status: 403 });
    await after(0);
    await after(30_000);
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "forbidden" });
  });

  test("a listener that disconnects when a snapshot comes ends the polling", async () => {
    client.subscribe(() => client.getState().metrics && client.disconnect());
    await disable();
    expect(client.getState().status).toMatchObject({ state: "closed", reason: "disconnected" });
    await after(600_000);
    expect(fetched).toHaveBeenCalledTimes(1);
    expect(TestSocket.all).toHaveLength(1);
  });

  test("a snapshot accepts the token: the next refusal counts as a first one", async () => {
    fetched.mockResolvedValueOnce({ ok: false, status: 401 });
    await disable();
    // The refused token is followed by a try of the WebSocket, which is still switched off; then a snapshot comes.
    await after(500);
    lastSocket().drop(4503);
    await after(30_000);
    expect(client.getState().metrics).not.toBeNull();
    fetched.mockResolvedValueOnce({ ok: false, status: 401 });
    await after(30_000);
    expect(state()).toBe("polling");
  });

  test("every tenth poll tries the socket; switched on, it is live again from the snapshot's position", async () => {
    await disable();
    await after(30_000 * 9);
    expect(TestSocket.all).toHaveLength(2);
    lastSocket().open();
    lastSocket().tell("disabled", { pollSeconds: 30 });
    expect(state()).toBe("polling");
    const polls = fetched.mock.calls.length;
    await after(30_000 * 9);
    expect(fetched.mock.calls.length).toBeGreaterThan(polls + 7);
    await after(30_000);
    const socket = await join({ recovered: true });
    expect(socket.resumes).toBe(`e1.${fetched.mock.calls.length}`);
    expect(state()).toBe("connected");
    const polled = fetched.mock.calls.length;
    await after(29_000);
    expect(fetched).toHaveBeenCalledTimes(polled);
  });

  test("f54 a snapshot without a position: the socket starts anew when it is back", async () => {
    fetched.mockImplementation(async () => ({ ...snapshot(1), json: async () => ({ tenantId: "acorn", epoch: null, seq: null, metrics: metrics(1), payments: [recent("p1")] }) }));
    await disable();
    expect(shownPayments()).toEqual(["p1"]);
    await after(30_000 * 9);
    lastSocket().open();
    expect(lastSocket().protocols.slice(2)).toEqual(["tenant.acorn"]);
    const socket = await join({ seq: 40, payments: [recent("p2")] });
    socket.event(payment(41, "p3"));
    expect(shownPayments()).toEqual(["p3", "p2"]);
  });

  test("nothing is fetched while offline; at once when the network is back", async () => {
    await disable();
    setOnline(false);
    window.dispatchEvent(new Event("offline"));
    await after(120_000);
    expect(fetched).toHaveBeenCalledTimes(1);
    setOnline(true);
    window.dispatchEvent(new Event("online"));
    await after(0);
    expect(fetched).toHaveBeenCalledTimes(2);
    expect(state()).toBe("polling");
  });
});
