import { ArcElement, Chart, DoughnutController, Tooltip } from "chart.js";
import { useEffect, useRef } from "react";
import { useDashboardState } from "../../src/react/index.js";
import { formatCount, formatStatus } from "./format.js";

Chart.register(ArcElement, DoughnutController, Tooltip);

/** A status has the same colour always. */
const COLOURS: Record<string, string> = {
  PAID: "#0d9488",
  PARTIALLY_PAID: "#ca8a04",
  PENDING: "#64748b",
  SENT: "#3b82f6",
  OVERDUE: "#dc2626",
  DRAFT: "#a8a29e",
  VOID: "#78716c",
};
const colour = (status: string) => COLOURS[status] ?? "#7c3aed";

/** How many invoices have each status, as a ring and as a list. */
export default function InvoiceChart() {
  const metrics = useDashboardState((state) => state.metrics);
  const canvas = useRef<HTMLCanvasElement>(null);
  const chart = useRef<Chart<"doughnut"> | null>(null);
  useEffect(() => {
    if (!canvas.current) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    chart.current = new Chart(canvas.current, {
      type: "doughnut",
      data: { labels: [], datasets: [{ data: [], backgroundColor: [], borderWidth: 0 }] },
      options: { cutout: "68%", maintainAspectRatio: false, animation: still ? false : { duration: 500 }, events: ["mousemove", "mouseout"] },
    });
    return () => chart.current?.destroy();
  }, []);

  const statuses = Object.entries(metrics?.invoicesByStatus ?? {}).sort(([, one], [, other]) => other - one);
  const total = statuses.reduce((sum, [, invoices]) => sum + invoices, 0);
  const drawn = JSON.stringify(statuses);
  useEffect(() => {
    const [dataset] = chart.current?.data.datasets ?? [];
    if (!chart.current || !dataset) return;
    const statuses: [string, number][] = JSON.parse(drawn);
    chart.current.data.labels = statuses.map(([status]) => formatStatus(status));
    dataset.data = statuses.map(([, invoices]) => invoices);
    dataset.backgroundColor = statuses.map(([status]) => colour(status));
    chart.current.update();
  }, [drawn]);

  return (
    <div className="ring-and-list">
      <div className="ring" aria-hidden="true">
        <canvas ref={canvas} />
        <p className="total">{metrics ? formatCount(total) : "–"}</p>
      </div>
      <ul>
        {statuses.map(([status, invoices]) => (
          <li key={status}>
            <svg viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="5" fill={colour(status)} /></svg>
            <span>{formatStatus(status)}</span>
            <strong>{formatCount(invoices)}</strong>
          </li>
        ))}
      </ul>
    </div>
  );
}
