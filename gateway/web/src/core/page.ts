/** What the page's life means for a connection. */
export interface PageEvents {
  /** The network is back, or the user looks at the page again. */
  wake(): void;
  /** The network is gone. */
  offline(): void;
  /** The browser freezes the page for its "back" button, which an open connection would prevent. */
  freeze(): void;
}

/** The browser, or a part of it in a test; outside of browsers there is neither. */
export interface Browser {
  window?: EventTarget;
  document?: EventTarget & { readonly visibilityState: string };
}

/** Calls `events` until `signal` is aborted. */
export function listenToPage(events: PageEvents, signal: AbortSignal, { window, document }: Browser = globalThis) {
  if (!window || !document) return;
  const on = (target: EventTarget, name: string, then: (event: Event) => void) => target.addEventListener(name, then, { signal });
  on(window, "online", events.wake);
  on(window, "offline", events.offline);
  on(document, "visibilitychange", () => document.visibilityState === "visible" && events.wake());
  on(window, "pagehide", (event) => (event as PageTransitionEvent).persisted && events.freeze());
  on(window, "pageshow", (event) => (event as PageTransitionEvent).persisted && events.wake());
}

/** Whether the browser knows that it has no network. */
export function isOffline(browser: { navigator?: { onLine?: boolean } } = globalThis): boolean {
  return browser.navigator?.onLine === false;
}
