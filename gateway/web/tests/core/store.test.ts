import { beforeEach, expect, test, vi } from "vitest";
import type { DashboardEvent } from "../../src/core/index.js";
import { Store } from "../../src/core/store.js";
import { alert, figures, metrics, payment, recent } from "../gateway.js";

let store: Store;
const none = { metrics: null, payments: null };
const condensed = (seq: number, condensed: object) => ({ ...figures(seq, 1), data: { ...metrics(1), condensed } }) as DashboardEvent;

beforeEach(() => {
  store = new Store();
  store.startFrom({ epoch: "e1", seq: 7 }, none, "acorn");
});

test("a new store has no position", () => {
  expect(new Store().position).toBeNull();
  expect(new Store().event(payment(1))).toBe("seen");
  expect([new Store().folded, new Store().resumes]).toEqual([false, false]);
});

test("only the next event is shown; the position follows it", () => {
  expect([6, 7].map((seq) => store.event(payment(seq)))).toEqual(["seen", "seen"]);
  expect(store.event(payment(9))).toBe("hole");
  expect(store.position).toEqual({ epoch: "e1", seq: 7 });
  expect(store.getState().payments).toEqual([]);
  expect(store.event(payment(8))).toBe("next");
  expect(store.position).toEqual({ epoch: "e1", seq: 8, id: "id-8" });
  expect(store.getState()).toMatchObject({ lastEvent: { seq: 8 }, payments: [{ paymentId: "pay-8" }] });
});

test("folded payments are remembered until a snapshot has payments", () => {
  expect(store.event(condensed(8, { arrears_alert: 1 }))).toBe("next");
  expect(store.folded).toBe(false);
  expect(store.event(condensed(9, { payment_received: 1 }))).toBe("folded");
  expect(store.event(payment(10))).toBe("next");
  store.startFrom({ epoch: "e1", seq: 10 }, none);
  expect(store.folded).toBe(true);
  store.startFrom({ epoch: "e1", seq: 10 }, { metrics: null, payments: [] });
  expect(store.folded).toBe(false);
  store.event(condensed(11, { payment_received: 1 }));
  store.add({ metrics: null, payments: [recent("p1")] });
  expect(store.folded).toBe(false);
  expect(store.position).toMatchObject({ seq: 11 });
  expect(store.getState().payments).toEqual([recent("p1")]);
});

test("a start without an epoch or a seq has no position", () => {
  store.startFrom({ epoch: null, seq: 7 }, none);
  expect(store.position).toBeNull();
  store.startFrom({ epoch: "e1", seq: null }, none);
  expect(store.position).toBeNull();
});

test("a start for another tenant leaves nothing; without a tenant it is the same one's", () => {
  store.event(alert(8, "thandi"));
  store.startFrom({ epoch: "e1", seq: 9 }, none);
  expect(store.getState()).toMatchObject({ tenantId: "acorn", alerts: [{ id: "id-8" }] });
  store.startFrom({ epoch: "e2", seq: 1 }, none, "oak");
  expect(store.getState()).toMatchObject({ tenantId: "oak", alerts: [] });
});

test("a forgotten tenant has no position, and is shown until another is joined", () => {
  store.event(payment(8));
  store.forget();
  expect([store.position, store.getState().tenantId]).toEqual([null, null]);
  expect(store.getState()).toMatchObject({ payments: [{ paymentId: "pay-8" }], lastEvent: { seq: 8 } });
});

test("listeners are called after every change until they stop, and may stop each other", () => {
  const later = vi.fn();
  const calls: string[] = [];
  let stopLater: () => void;
  const stop = store.subscribe(() => {
    calls.push(store.getState().status.state);
    stopLater();
  });
  stopLater = store.subscribe(later);
  store.show({ state: "connecting" });
  store.show({ state: "connected" });
  expect(calls).toEqual(["connecting", "connected"]);
  expect(later).toHaveBeenCalledTimes(1);
  stop();
  store.show({ state: "connecting" });
  expect(calls).toHaveLength(2);
});

test("event listeners see the state that has the event, until they stop", () => {
  const seen: unknown[] = [];
  const stop = store.onEvent(({ seq }) => seen.push([seq, store.getState().lastEvent?.seq]));
  for (const seq of [8, 8, 10, 9]) store.event(payment(seq));
  stop();
  store.event(payment(10));
  expect(seen).toEqual([[8, 8], [9, 9]]);
});

test("a dismissed alert is gone; an unknown one changes nothing", () => {
  store.event(alert(8, "thandi"));
  store.event(alert(9, "pieter"));
  const changed = vi.fn();
  store.subscribe(changed);
  store.dismissAlert("unknown");
  expect(changed).not.toHaveBeenCalled();
  store.dismissAlert("id-8");
  expect(changed).toHaveBeenCalledTimes(1);
  expect(store.getState().alerts.map((it) => it.id)).toEqual(["id-9"]);
  expect(store.getState()).toMatchObject({ tenantId: "acorn", lastEvent: { seq: 9 } });
});
