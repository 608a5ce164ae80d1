/** The browser, or what stands for it in a test. Outside of browsers there is neither. */
export interface Browser {
  window?: EventTarget;
  document?: EventTarget & { readonly visibilityState: string };
}

/**
 * Reports what happens to the page, until `signal` is aborted. `wake`: the network is back, or the user looks at the page again.
 * `offline`: the network is gone. `freeze`: the browser keeps the page for its "back" button, which an open connection would prevent.
 */
export function listenToPage(
  wake: () => void,
  offline: () => void,
  freeze: () => void,
  signal: AbortSignal,
  { window, document }: Browser = globalThis,
) {
  if (!window || !document) return;
  const on = (target: EventTarget, name: string, then: (event: Event) => void) => target.addEventListener(name, then, { signal });
  const ifKept = (then: () => void) => (event: Event) => (event as PageTransitionEvent).persisted && then();
  on(window, "online", wake);
  on(window, "offline", offline);
  on(document, "visibilitychange", () => document.visibilityState === "visible" && wake());
  on(window, "pagehide", ifKept(freeze));
  on(window, "pageshow", ifKept(wake));
}

/** Whether the browser knows that it has no network. */
export function isOffline(browser: { navigator?: { onLine?: boolean } } = globalThis): boolean {
  return browser.navigator?.onLine === false;
}
