import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { expect } from "vitest";
import { eventually } from "./processes.js";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export const launch = (): Promise<Browser> =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });

declare global {
  interface Window {
    /** Measurements in the page. */
    watched: { shift: number; longest: number; shown: Map<string, number> };
    axe: { run: () => Promise<{ violations: { id: string; impact: string; nodes: { html: string }[] }[] }> };
  }
}

/** Runs in the page before its own code. Records layout shifts, long tasks, and when each payment was first drawn. */
function watch() {
  window.watched = { shift: 0, longest: 0, shown: new Map() };
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries() as (PerformanceEntry & { value: number; hadRecentInput: boolean })[]) window.watched.shift += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.watched.longest = Math.max(window.watched.longest, entry.duration);
  }).observe({ type: "longtask", buffered: true });
  new MutationObserver(() => {
    for (const row of document.querySelectorAll<HTMLElement>("[data-payment]")) {
      const id = row.dataset.payment ?? "";
      if (!window.watched.shown.has(id)) window.watched.shown.set(id, Date.now());
    }
  }).observe(document, { childList: true, subtree: true });
}

export interface WindowOptions extends BrowserContextOptions {
  /** Answers the page's request for a token in place of the gateway, as CrecheBooks' session would. */
  token?: () => string;
}

/** A browser window with a dashboard in it. */
export class DashboardWindow {
  readonly complaints: string[] = [];
  readonly outside: string[] = [];
  sockets = 0;
  /** The messages that the page's sockets sent. */
  readonly sent: string[] = [];

  private constructor(readonly page: Page) {}

  static async open(browser: Browser, url: string, { token, ...options }: WindowOptions = {}): Promise<DashboardWindow> {
    const context = await browser.newContext({ viewport: { width: 1280, height: 1000 }, ...options });
    const page = await context.newPage();
    const opened = new DashboardWindow(page);
    await page.addInitScript(watch);
    if (token) await page.route("**/demo/token", (route) => route.fulfill({ json: { token: token() } }));
    page.on("websocket", (socket) => {
      opened.sockets++;
      socket.on("framesent", ({ payload }) => opened.sent.push(String(payload)));
    });
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) opened.complaints.push(message.text());
    });
    page.on("pageerror", (error) => opened.complaints.push(String(error)));
    const { host } = new URL(url);
    page.on("request", (request) => {
      if (new URL(request.url()).host !== host) opened.outside.push(request.url());
    });
    await page.goto(url);
    return opened;
  }

  state = () => this.page.locator("#connection").innerText();

  async shows(state: string | RegExp, patienceMs?: number) {
    await eventually(`the page says ${state}`, async () => (await this.state()).match(state), patienceMs);
  }

  /** The payments of the list, from the top. */
  payments = () => this.page.locator("[data-payment]").evaluateAll((rows) => rows.map((row) => (row as HTMLElement).dataset.payment ?? ""));

  async has(...payments: string[]) {
    await eventually(`the page shows ${payments.length} payments`, async () => {
      const shown = await this.payments();
      return payments.every((payment) => shown.includes(payment));
    });
    const shown = await this.payments();
    expect(new Set(shown).size).toBe(shown.length);
  }

  /** When the payment was first drawn, in milliseconds since 1970. */
  async seenAt(payment: string): Promise<number> {
    await this.has(payment);
    return this.page.evaluate((id) => window.watched.shown.get(id) ?? NaN, payment);
  }

  /** Checks that axe-core finds no serious violation, and that there are no layout shifts, errors or requests to other hosts. */
  async isSound({ complaints = true } = {}) {
    await this.#still();
    await this.page.evaluate(axe);
    const { violations } = await this.page.evaluate(() => window.axe.run());
    const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
    expect(serious.map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])).toEqual([]);
    // Lighthouse rates a shift below 0.1 as good.
    expect(await this.page.evaluate(() => window.watched.shift)).toBeLessThan(0.01);
    expect(this.outside).toEqual([]);
    if (complaints) expect(this.complaints).toEqual([]);
  }

  /** Waits for the end of all animations: axe-core must not judge colours in between. */
  #still = () => this.page.evaluate(async () => void (await Promise.allSettled(document.getAnimations().map((animation) => animation.finished))));

  async photograph(name: string) {
    await this.#still();
    await this.page.screenshot({ path: `tests/browser/screenshots/${name}.png` });
  }

  close = () => this.page.context().close();
}
