import { beforeEach, expect, test } from "vitest";
import { isOffline, listenToPage } from "../../src/core/page.js";

let happened: string[];
let stop: AbortController;
let window: EventTarget;
let document: EventTarget & { visibilityState: string };
const listen = (browser = { window, document }) =>
  listenToPage(
    () => happened.push("wake"),
    () => happened.push("offline"),
    () => happened.push("freeze"),
    stop.signal,
    browser,
  );
const send = (name: string, more: object = {}) => window.dispatchEvent(Object.assign(new Event(name), more));
const look = (visibilityState: string) => {
  document.visibilityState = visibilityState;
  document.dispatchEvent(new Event("visibilitychange"));
};

beforeEach(() => {
  happened = [];
  stop = new AbortController();
  window = new EventTarget();
  document = Object.assign(new EventTarget(), { visibilityState: "visible" });
});

test("the network's end and return are reported", () => {
  listen();
  send("offline");
  send("online");
  expect(happened).toEqual(["offline", "wake"]);
});

test("a hidden page is not woken, a visible one is", () => {
  listen();
  look("hidden");
  expect(happened).toEqual([]);
  look("visible");
  expect(happened).toEqual(["wake"]);
});

test("only a page that the browser keeps is frozen and woken", () => {
  listen();
  send("pagehide", { persisted: false });
  send("pageshow", { persisted: false });
  expect(happened).toEqual([]);
  send("pagehide", { persisted: true });
  send("pageshow", { persisted: true });
  expect(happened).toEqual(["freeze", "wake"]);
});

test("nothing is reported after the abort", () => {
  listen();
  stop.abort();
  for (const name of ["online", "offline", "pagehide", "pageshow"]) send(name, { persisted: true });
  look("visible");
  expect(happened).toEqual([]);
});

test("outside of a browser there is nothing to listen to", () => {
  expect(() => listenToPage(() => {}, () => {}, () => {}, stop.signal, {})).not.toThrow();
  expect(() => listenToPage(() => {}, () => {}, () => {}, stop.signal, { window })).not.toThrow();
});

test("only a browser that says so is offline", () => {
  expect(isOffline({ navigator: { onLine: false } })).toBe(true);
  expect(isOffline({ navigator: { onLine: true } })).toBe(false);
  expect(isOffline({ navigator: {} })).toBe(false);
  expect(isOffline({})).toBe(false);
});
