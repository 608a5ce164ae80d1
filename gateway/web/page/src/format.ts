import type { DashboardEventType } from "../../src/core/index.js";

const rand = new Intl.NumberFormat("en-ZA", { style: "currency", currency: "ZAR" });
const count = new Intl.NumberFormat("en-ZA");
const clock = new Intl.DateTimeFormat("en-ZA", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat("en-ZA", { day: "numeric", month: "short" });

export const formatRand = (amount: number) => rand.format(amount);
export const formatCount = (number: number) => count.format(Math.round(number));
export const formatTime = (when: string | number) => clock.format(new Date(when));

/** The time for today, the date for any other day. */
export function formatWhen(when: string): string {
  const date = new Date(when);
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : day.format(date);
}

/** `PARTIALLY_PAID` as "Partially paid". */
export function formatStatus(status: string): string {
  const words = status.toLowerCase().replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Events that were folded into figures. */
export type Folded = { [T in DashboardEventType]?: number };

const KINDS = { payment_received: "payment", invoice_status_changed: "invoice change", arrears_alert: "alert" } as const;

/** "37 payments and 4 alerts were summarised." Empty when there are none. */
export function formatFolded(folded: Folded): string {
  const parts = Object.entries(KINDS).flatMap(([type, name]) => {
    const number = folded[type as keyof typeof KINDS] ?? 0;
    return number > 0 ? [`${formatCount(number)} ${name}${number === 1 ? "" : "s"}`] : [];
  });
  if (parts.length === 0) return "";
  const last = parts.pop();
  return `${parts.length > 0 ? `${parts.join(", ")} and ` : ""}${last} ${last?.startsWith("1 ") && parts.length === 0 ? "was" : "were"} summarised.`;
}

export function addFolded(to: Folded, more: Folded): Folded {
  const sum = { ...to };
  for (const [type, number] of Object.entries(more) as [DashboardEventType, number][]) sum[type] = (sum[type] ?? 0) + number;
  return sum;
}
