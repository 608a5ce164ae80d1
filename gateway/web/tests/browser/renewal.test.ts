import { expect, test } from "vitest";
import { eventually } from "./harness/processes.js";
import { ACORN, Stack } from "./harness/stack.js";
import { DashboardWindow, launch } from "./harness/window.js";

// It takes a minute, most of it waiting: a file of its own runs in parallel with the others.
test("a token is renewed on the open socket, without a reconnect", async () => {
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
    // The first token ends 66 s after it was signed, including the leeway.
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
