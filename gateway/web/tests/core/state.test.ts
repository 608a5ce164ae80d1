import { describe, expect, test } from "vitest";
import type { DashboardEvent, DashboardState } from "../../src/core/index.js";
import { initialState, MAX_ALERTS, MAX_PAYMENTS, ofTenant, withEvent, withMore, withSnapshot } from "../../src/core/state.js";
import { alert, figures, metrics, payment, recent } from "../gateway.js";

const NOW = Date.parse("2026-11-24T12:01:00Z");
const at = (second: number) => `2026-11-24T12:00:${String(second).padStart(2, "0")}Z`;
const paid = (paymentId: string, second: number) => ({ ...recent(paymentId), receivedAt: at(second) });
const asOf = (time: string, outstanding: number) => ({ ...metrics(outstanding), asOf: time });
const ids = ({ payments }: DashboardState) => payments.map((it) => it.paymentId);
const outstanding = ({ metrics }: DashboardState) => metrics?.totalOutstanding;
const shown: DashboardState = { ...initialState, status: { state: "connected" }, tenantId: "acorn" };

test("at first there is nothing, and nothing is tried", () => {
  expect(initialState).toEqual({
    status: { state: "closed", reason: "idle", message: "not connected yet" },
    tenantId: null,
    metrics: null,
    payments: [],
    alerts: [],
    lastEvent: null,
    lastUpdate: null,
  });
  expect([MAX_PAYMENTS, MAX_ALERTS]).toEqual([50, 100]);
});

describe("an event", () => {
  test.each<[string, DashboardEvent]>([
    ["a payment", payment(1)],
    ["an alert", alert(1, "thandi")],
    ["figures", figures(1, 5)],
    ["a status", { type: "invoice_status_changed", seq: 1, id: "id-1", timestamp: at(0), data: { invoiceId: "i", invoiceNumber: "INV-1", previousStatus: "PENDING", newStatus: "PAID" } }],
  ])("%s is the last one, of now, and leaves the rest as it was", (_, event) => {
    const next = withEvent({ ...shown, metrics: asOf("2026-11-24T11:00:00Z", 1), payments: [recent("p")], lastUpdate: 1 }, event, NOW);
    expect(next).toMatchObject({ status: { state: "connected" }, tenantId: "acorn", lastEvent: event, lastUpdate: NOW });
    expect(ids(next)).toEqual(event.type === "payment_received" ? ["pay-1", "p"] : ["p"]);
    expect(outstanding(next)).toBe(event.type === "metrics_updated" ? 5 : 1);
    expect(next.alerts).toHaveLength(event.type === "arrears_alert" ? 1 : 0);
  });

  test("a payment is listed with its data and the time of its event", () => {
    expect(withEvent(shown, payment(1, "p1"), NOW).payments).toEqual([recent("p1")]);
  });

  test("a known payment gets the event's data and keeps its place and its time", () => {
    const state = { ...shown, payments: [paid("p3", 3), paid("p2", 2), paid("p1", 1)] };
    const event = { ...payment(9, "p2"), timestamp: at(50) };
    const corrected = { ...event, data: { ...event.data, amount: 7 } } as DashboardEvent;
    const next = withEvent(state, corrected, NOW);
    expect(next.payments).toEqual([paid("p3", 3), { ...paid("p2", 2), amount: 7 }, paid("p1", 1)]);
    expect(ids(withEvent(state, payment(9, "p3"), NOW))).toEqual(["p3", "p2", "p1"]);
  });

  test("an older payment takes the place of its time, also the last one", () => {
    const state = { ...shown, payments: [paid("p5", 5), paid("p3", 3)] };
    expect(ids(withEvent(state, { ...payment(9, "p4"), timestamp: at(4) }, NOW))).toEqual(["p5", "p4", "p3"]);
    expect(ids(withEvent(state, { ...payment(9, "p1"), timestamp: at(1) }, NOW))).toEqual(["p5", "p3", "p1"]);
    expect(ids(withEvent(state, { ...payment(9, "p3b"), timestamp: at(3) }, NOW))).toEqual(["p5", "p3b", "p3"]);
  });

  test("an unreadable time in the list does not hold a payment back", () => {
    const state = { ...shown, payments: [{ ...recent("odd"), receivedAt: "soon" }] };
    expect(ids(withEvent(state, payment(1, "p1"), NOW))).toEqual(["p1", "odd"]);
  });

  test("exactly the newest 50 payments and 100 alerts are kept", () => {
    let state = shown;
    for (let seq = 1; seq <= 51; seq++) state = withEvent(state, { ...payment(seq), timestamp: at(seq) }, NOW);
    expect(state.payments).toHaveLength(MAX_PAYMENTS);
    expect([ids(state)[0], ids(state).at(-1)]).toEqual(["pay-51", "pay-2"]);
    for (let seq = 1; seq <= 101; seq++) state = withEvent(state, alert(seq, `parent-${seq}`), NOW);
    expect(state.alerts).toHaveLength(MAX_ALERTS);
    expect([state.alerts[0]?.id, state.alerts.at(-1)?.id]).toEqual(["id-101", "id-2"]);
  });

  test("an alert has its event's id and time, and replaces only its parent's", () => {
    const state = withEvent(withEvent(shown, alert(1, "thandi"), NOW), alert(2, "pieter"), NOW);
    const next = withEvent(state, alert(3, "thandi", 9), NOW);
    const data = { parentId: "thandi", parentName: "thandi", totalArrears: 9, daysOverdue: 9 };
    expect(next.alerts[0]).toEqual({ ...data, id: "id-3", timestamp: "2026-11-24T12:00:00Z" });
    expect(next.alerts.map((it) => it.id)).toEqual(["id-3", "id-2"]);
  });
});

describe("figures", () => {
  const next = (known: string, time: string) => outstanding(withSnapshot({ ...shown, metrics: asOf(known, 1) }, { metrics: asOf(time, 2), payments: null }, NOW));

  test("the later ones win, and of the same moment the last ones to come", () => {
    expect(next("2026-11-24T12:00:05Z", "2026-11-24T12:00:04Z")).toBe(1);
    expect(next("2026-11-24T12:00:05Z", "2026-11-24T12:00:05Z")).toBe(2);
    expect(next("2026-11-24T12:00:05Z", "2026-11-24T12:00:06Z")).toBe(2);
  });

  test("known ones may be exactly a minute ahead of our clock, and are replaced beyond that", () => {
    expect(next("2026-11-24T12:02:00.000Z", "2026-11-24T12:00:00Z")).toBe(1);
    expect(next("2026-11-24T12:02:00.001Z", "2026-11-24T12:00:00Z")).toBe(2);
  });

  test("null never replaces figures", () => {
    expect(outstanding(withSnapshot({ ...shown, metrics: metrics(1) }, { metrics: null, payments: null }, NOW))).toBe(1);
    expect(withSnapshot(shown, { metrics: null, payments: null }, NOW).metrics).toBeNull();
  });
});

describe("a snapshot", () => {
  const state = { ...shown, metrics: metrics(1), payments: [paid("p2", 2)], lastUpdate: 5 };

  test("replaces the payments that it has", () => {
    const next = withSnapshot(state, { metrics: metrics(3), payments: [paid("q1", 1)] }, NOW);
    expect(next).toEqual({ ...state, metrics: metrics(3), payments: [paid("q1", 1)], lastUpdate: NOW });
  });

  test.each([
    ["payments alone", { metrics: null, payments: [] }, NOW],
    ["figures alone", { metrics: metrics(3), payments: null }, NOW],
    ["neither", { metrics: null, payments: null }, 5],
  ])("with %s leaves the rest, and is an update only if it has a part", (_, snapshot, lastUpdate) => {
    const next = withSnapshot(state, snapshot, NOW);
    expect(ids(next)).toEqual(snapshot.payments ? [] : ["p2"]);
    expect(outstanding(next)).toBe(snapshot.metrics ? 3 : 1);
    expect(next.lastUpdate).toBe(lastUpdate);
  });

  test("that is added keeps the stream's payments, in the order of their times", () => {
    const next = withMore(state, { metrics: metrics(3), payments: [paid("p4", 4), paid("p3", 3), paid("p1", 1)] }, NOW);
    expect(ids(next)).toEqual(["p4", "p3", "p2", "p1"]);
    expect(next).toEqual({ ...state, metrics: metrics(3), payments: next.payments, lastUpdate: NOW });
    // Of the same moment: the snapshot's order stays.
    expect(ids(withMore(shown, { metrics: null, payments: [paid("b", 1), paid("a", 1)] }, NOW))).toEqual(["b", "a"]);
    expect(withMore(state, { metrics: null, payments: null }, NOW)).toEqual({ ...state, lastUpdate: NOW });
  });
});

test("of another tenant only the status stays; of the same one everything does", () => {
  const state = { ...shown, metrics: metrics(1), payments: [recent("p")], lastUpdate: 5 };
  expect(ofTenant(state, "acorn")).toBe(state);
  expect(ofTenant(state, "oak")).toEqual({ ...initialState, status: { state: "connected" }, tenantId: "oak" });
});
