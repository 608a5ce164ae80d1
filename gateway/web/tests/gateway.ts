import { vi } from "vitest";
import type { ClientMessage, DashboardEvent, MetricsUpdated, RecentPayment, ServerMessage } from "../src/core/index.js";

type Data<T extends ServerMessage["type"]> = Extract<ServerMessage, { type: T }>["data"];

/** A WebSocket that the test controls: it opens, receives and closes only when the test says so. */
export class TestSocket {
  static all: TestSocket[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  readyState = 0;
  sent: ClientMessage[] = [];
  readonly protocols: string[];

  constructor(readonly url: URL | string, protocols: string | string[]) {
    this.protocols = [protocols].flat();
    // As in browsers (RFC 6455, section 4.1).
    if (this.protocols.some((protocol) => !/^[!#-'*+\-.0-9A-Z^-z|~]+$/.test(protocol))) throw new SyntaxError("no token");
    TestSocket.all.push(this);
  }

  /** The position that the handshake resumes from. */
  get resumes(): string | undefined {
    return this.protocols.find((offer) => offer.startsWith("resume."))?.slice("resume.".length);
  }

  send(text: string) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  open() {
    this.readyState = 1;
    this.onopen?.();
  }

  tell<T extends ServerMessage["type"]>(type: T, data: Data<T>) {
    this.onmessage?.({ data: JSON.stringify({ type, timestamp: "2026-11-24T12:00:00Z", data }) });
  }

  event(event: DashboardEvent) {
    this.onmessage?.({ data: JSON.stringify(event) });
  }

  drop(code: number) {
    this.readyState = 3;
    this.onclose?.({ code });
  }
}

export const lastSocket = (): TestSocket => {
  const socket = TestSocket.all.at(-1);
  if (!socket) throw new Error("nothing was connected");
  return socket;
};

export const openSockets = () => TestSocket.all.filter((socket) => socket.readyState < 2).length;

/** Replaces the browser's sockets, clock and random numbers by the test's. */
export function takeOver() {
  TestSocket.all = [];
  // A minute after the times of the messages.
  vi.useFakeTimers({ now: Date.parse("2026-11-24T12:01:00Z") });
  vi.stubGlobal("WebSocket", TestSocket);
  vi.spyOn(Math, "random").mockReturnValue(0.5);
  setOnline(true);
}

export function giveBack() {
  vi.useRealTimers();
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
}

export function setOnline(online: boolean) {
  vi.spyOn(navigator, "onLine", "get").mockReturnValue(online);
}

export const metrics = (outstanding: number): MetricsUpdated => ({
  totalOutstanding: outstanding,
  totalArrears: 0,
  accountsInArrears: 0,
  paymentsToday: 0,
  amountReceivedToday: 0,
  invoicesByStatus: { PENDING: 3 },
  asOf: "2026-11-24T12:00:00Z",
});

export const recent = (paymentId: string): RecentPayment => ({
  paymentId,
  amount: 1500,
  parentName: "Thandi Mokoena",
  childName: "Lwazi",
  invoiceNumber: "INV-1",
  receivedAt: "2026-11-24T12:00:00Z",
});

export function payment(seq: number, paymentId = `pay-${seq}`): DashboardEvent {
  const { receivedAt: timestamp, ...data } = recent(paymentId);
  return { type: "payment_received", seq, id: `id-${seq}`, timestamp, data };
}

export function alert(seq: number, parentId: string, totalArrears = 100): DashboardEvent {
  const data = { parentId, parentName: parentId, totalArrears, daysOverdue: 9 };
  return { type: "arrears_alert", seq, id: `id-${seq}`, timestamp: "2026-11-24T12:00:00Z", data };
}

export function figures(seq: number, outstanding: number): DashboardEvent {
  return { type: "metrics_updated", seq, id: `id-${seq}`, timestamp: "2026-11-24T12:00:00Z", data: metrics(outstanding) };
}

type Joining = Partial<Data<"joined">>;

/** Lets the last socket open and join. */
export async function join(joining: Joining = {}): Promise<TestSocket> {
  await vi.advanceTimersByTimeAsync(0);
  const socket = lastSocket();
  socket.open();
  socket.tell("joined", { tenantId: "acorn", epoch: "e1", seq: 0, recovered: false, heartbeatSeconds: 30, metrics: null, payments: null, ...joining });
  return socket;
}
