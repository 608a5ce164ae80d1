import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { freePort, root, Server } from "./harness/processes.js";
import { Stack } from "./harness/stack.js";
import { DashboardWindow, launch } from "./harness/window.js";

let browser: Browser;
beforeAll(async () => void (browser = await launch()));
afterAll(() => browser?.close());

const recordPayment = async (window: DashboardWindow) => {
  await window.page.getByRole("button", { name: "Record" }).click();
  await expect.poll(() => window.page.locator(".outcome").innerText()).toBe("Recorded.");
};

test("the demo runs without other servers: a centre with events, and a till", async () => {
  const [port, internal] = [await freePort(), await freePort()];
  const env = { LISTEN: `127.0.0.1:${port}`, INTERNAL_LISTEN: `127.0.0.1:${internal}` };
  const demo = await new Server(port, `${root}/target/debug/gateway`, ["demo"], { env }).start();
  try {
    const window = await DashboardWindow.open(browser, `http://127.0.0.1:${port}/`);
    await window.shows("Live");
    // It starts with figures and payments, and makes more by itself.
    await expect.poll(async () => (await window.payments()).length).toBeGreaterThan(5);
    const before = await window.payments();
    await expect.poll(() => window.page.locator(".tile .value").allInnerTexts()).not.toContain("–");
    await expect.poll(async () => (await window.payments()).length, { timeout: 20_000 }).toBeGreaterThan(before.length + 2);
    await recordPayment(window);
    // Invoices fall due at random: in 40 s there is none in 7 of 100 runs.
    await expect.poll(() => window.page.locator(".alerts li").count(), { timeout: 150_000 }).toBeGreaterThan(0);
    await window.photograph("demo");
    await window.isSound();
  } finally {
    await demo.stop();
  }
}, 200_000);

test("against a full stack, a payment recorded in one window appears in the other", async () => {
  const stack = await Stack.start();
  try {
    const gateway = await stack.gateway({}, ["demo", "--billing-api", `http://127.0.0.1:${stack.billing.port}`]);
    const url = `http://127.0.0.1:${gateway.port}/`;
    const [till, other] = await Promise.all([DashboardWindow.open(browser, url), DashboardWindow.open(browser, url)]);
    await till.shows("Live");
    await other.shows("Live");
    const before = await expect.poll(() => other.payments()).toHaveLength(20).then(() => other.payments());
    await till.page.getByLabel("Amount").fill("12.50");
    await recordPayment(till);
    await expect.poll(async () => (await other.payments()).length).toBe(21);
    const [newest] = await other.payments();
    expect(before).not.toContain(newest);
    await till.has(newest!);
    expect(await other.page.locator("[data-payment] strong").first().innerText()).toMatch(/^R\s12,50$/);
    // The billing API refuses more than the balance, and the page shows its message.
    await till.page.getByLabel("Amount").fill("999999");
    await till.page.getByRole("button", { name: "Record" }).click();
    await expect.poll(() => till.page.locator(".outcome").innerText()).not.toMatch(/Recorded|^$/);
    await other.isSound();
  } finally {
    await stack.stop();
  }
});
