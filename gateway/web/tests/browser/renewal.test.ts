import { expect, test } from "vitest";
import { eventually } from "./harness/processes.js";
import { ACORN, Stack } from "./harness/stack.js";
import { DashboardWindow, launch } from "./harness/window.js";

// A minute, most of it waiting: in a file of its own it shares that minute with the others.
test("a token is renewed on the open socket, and nobody notices", async () => {
  const [stack, browser] = await Promise.all([Stack.start(), launch()]);
  try {
    const gateway = await stack.gateway();
    let tokens = 0;
    const token = () => stack.token(ACORN, tokens++ === 0 ? 61 : 3600);
    const window = await DashboardWindow.open(browser, `http://127.0.0.1:${gateway.port}/`, { token });
    await window.shows("Live");
    // A second after it is signed, or half a minute when the page took longer to connect.
    await eventually("the page asks for another token", () => tokens > 1, 60_000);
    const states = new Set<string>();
    // The first token is over 66 s after it was signed, its leeway included.
    await eventually("the first token's end", async () => {
      states.add(await window.state());
      return (await window.page.evaluate(() => performance.now())) > 68_000;
    }, 80_000);
    await window.has(await stack.pay(ACORN));
    expect([...states]).toEqual(["Live"]);
    expect(window.sockets).toBe(1);
    await window.isSound();
  } finally {
    await browser.close();
    await stack.stop();
  }
}, 120_000);
