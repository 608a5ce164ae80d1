import { act, StrictMode, useEffect, version } from "react";
import { createRoot, hydrateRoot, type Root } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { DashboardProvider, type DashboardConnection, useDashboardSocket, useDashboardState } from "../../src/react/index.js";
import { alert, figures, giveBack, join, lastSocket, metrics, openSockets, payment, recent, takeOver, TestSocket } from "../gateway.js";

const URL = "wss://gateway.test/dashboard";
const getToken = vi.fn(async () => "token");
let root: Root;
let box: HTMLElement;
let seen: DashboardConnection[];

function Hook() {
  const dashboard = useDashboardSocket();
  seen.push(dashboard);
  return <p>{dashboard.status.state}</p>;
}

const last = () => seen.at(-1)!;
const render = (node: React.ReactNode) => act(async () => root.render(node));
const joined = (joining = {}) => act(async () => void (await join(joining)));
const provider = (children: React.ReactNode, more = {}) => <DashboardProvider url={URL} getToken={getToken} {...more}>{children}</DashboardProvider>;

beforeEach(() => {
  takeOver();
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  getToken.mockClear();
  seen = [];
  box = document.createElement("div");
  root = createRoot(box);
});

afterEach(async () => {
  await act(async () => root.unmount());
  expect(openSockets()).toBe(0);
  expect(vi.getTimerCount()).toBe(0);
  giveBack();
});

test("the version under test is the project's", ({ task }) => {
  expect(`react-${version.split(".")[0]}`).toBe(task.file.projectName);
});

test("the hook has what the specification says, and follows the socket", async () => {
  await render(provider(<Hook />));
  expect(last()).toMatchObject({ isConnected: false, lastEvent: null, metrics: null, payments: [], alerts: [] });
  await joined({ metrics: metrics(100), payments: [recent("p1")] });
  expect(last()).toMatchObject({ isConnected: true, metrics: { totalOutstanding: 100 }, payments: [{ paymentId: "p1" }] });
  await act(async () => {
    lastSocket().event(payment(1));
    lastSocket().event(alert(2, "thandi"));
  });
  expect(last().lastEvent?.type).toBe("arrears_alert");
  expect(last().payments.map((it) => it.paymentId)).toEqual(["pay-1", "p1"]);
  await act(async () => last().dismissAlert(last().alerts[0]!.id));
  expect(last().alerts).toEqual([]);
  await act(async () => lastSocket().tell("degraded", { reason: "redis", since: "2026-11-24T12:00:00Z" }));
  expect(last()).toMatchObject({ isConnected: false, status: { state: "degraded" } });
  await act(async () => last().disconnect());
  expect(last().status).toMatchObject({ state: "closed", reason: "disconnected" });
  await act(async () => last().connect());
  await joined({ recovered: true });
  expect(last().isConnected).toBe(true);
});

test("all hooks share one socket; StrictMode leaves no second one", async () => {
  await render(<StrictMode>{provider(<><Hook /><Hook /><Hook /></>)}</StrictMode>);
  await joined();
  expect(openSockets()).toBe(1);
  expect(TestSocket.all.length).toBeLessThanOrEqual(2);
  expect(last().isConnected).toBe(true);
});

test("unmounting closes, and leaves no timer and no listener", async () => {
  await render(provider(<Hook />));
  await joined();
  const removed = TestSocket.all.length;
  await render(null);
  expect(openSockets()).toBe(0);
  expect(vi.getTimerCount()).toBe(0);
  window.dispatchEvent(new Event("online"));
  await act(() => vi.advanceTimersByTimeAsync(60_000));
  expect(TestSocket.all).toHaveLength(removed);
});

test("nothing is rendered again when nothing changed, and callbacks keep their identity", async () => {
  await render(provider(<Hook />));
  await joined({ seq: 5 });
  const { connect, disconnect, dismissAlert } = last();
  const renderings = seen.length;
  await act(async () => {
    lastSocket().tell("heartbeat", { epoch: "e1", seq: 5 });
    lastSocket().event(payment(4));
  });
  expect(seen.length).toBe(renderings);
  await act(async () => lastSocket().event(payment(6)));
  expect(last()).toMatchObject({ connect, disconnect, dismissAlert });
});

test("a selected part renders only when it changes", async () => {
  let renderings = 0;
  function Payments() {
    const payments = useDashboardState((state) => state.payments);
    useEffect(() => void renderings++);
    return <p>{payments.length}</p>;
  }
  await render(provider(<Payments />));
  await joined();
  const before = renderings;
  await act(async () => lastSocket().event(figures(1, 5)));
  expect(renderings).toBe(before);
  await act(async () => lastSocket().event(payment(2)));
  expect(renderings).toBe(before + 1);
});

test("a new getToken is used without a reconnect; another tenant reconnects", async () => {
  await render(provider(<Hook />));
  await joined();
  const other = vi.fn(async () => "other");
  await render(provider(<Hook />, { getToken: other }));
  expect(TestSocket.all).toHaveLength(1);
  await act(async () => lastSocket().tell("token_expiring", { expiresInSeconds: 60 }));
  expect(other).toHaveBeenCalledTimes(1);
  await render(provider(<Hook />, { tenantId: "oak" }));
  expect(TestSocket.all[0]?.readyState).toBe(3);
  await joined({ tenantId: "oak" });
  expect(last()).toMatchObject({ tenantId: "oak", isConnected: true });
});

test("autoConnect can be left to the app", async () => {
  await render(provider(<Hook />, { autoConnect: false }));
  await act(() => vi.advanceTimersByTimeAsync(0));
  expect(TestSocket.all).toHaveLength(0);
  expect(last().status).toMatchObject({ state: "closed", reason: "idle" });
  await act(async () => last().connect());
  await joined();
  expect(last().isConnected).toBe(true);
});

test("it renders on a server, and hydrates", async () => {
  const html = renderToString(provider(<Hook />));
  expect(html).toContain("closed");
  box = document.createElement("div");
  box.innerHTML = html;
  const complaints = vi.spyOn(console, "error").mockImplementation(() => {});
  root = await act(async () => hydrateRoot(box, provider(<Hook />)));
  await joined();
  expect(box.textContent).toBe("connected");
  expect(complaints).not.toHaveBeenCalled();
});

test("without a provider the error says what is missing", () => {
  expect(() => renderToString(<Hook />)).toThrow("<DashboardProvider>");
});
