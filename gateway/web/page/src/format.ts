const rand = new Intl.NumberFormat("en-ZA", { style: "currency", currency: "ZAR" });
const count = new Intl.NumberFormat("en-ZA");
const clock = new Intl.DateTimeFormat("en-ZA", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat("en-ZA", { day: "numeric", month: "short" });

export const formatRand = (amount: number) => rand.format(amount);
export const formatCount = (number: number) => count.format(Math.round(number));
export const formatTime = (when: string | number) => clock.format(new Date(when));

/** The time of today, the date of another day. */
export function formatWhen(when: string): string {
  const date = new Date(when);
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : day.format(date);
}

/** `PARTIALLY_PAID` as people say it. */
export function formatStatus(status: string): string {
  const words = status.toLowerCase().replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
