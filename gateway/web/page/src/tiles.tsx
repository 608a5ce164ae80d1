import { useDashboardState } from "../../src/react/index.js";
import { formatCount, formatRand } from "./format.js";
import { useCounting } from "./motion.js";

export function Tiles() {
  const metrics = useDashboardState((state) => state.metrics);
  const payments = metrics?.paymentsToday ?? 0;
  return (
    <section className="tiles" aria-label="Figures">
      <Tile name="Outstanding" value={metrics?.totalOutstanding} format={formatRand} />
      <Tile name="In arrears" value={metrics?.totalArrears} format={formatRand} />
      <Tile name="Accounts in arrears" value={metrics?.accountsInArrears} format={formatCount} />
      <Tile
        name="Received today"
        value={metrics?.amountReceivedToday}
        format={formatRand}
        note={metrics ? `${formatCount(payments)} ${payments === 1 ? "payment" : "payments"}` : ""}
      />
    </section>
  );
}

type TileProps = { name: string; value: number | undefined; format: (value: number) => string; note?: string };

function Tile({ name, value, format, note }: TileProps) {
  const shown = useCounting(value ?? null);
  return (
    <div className="tile panel">
      <h2>{name}</h2>
      {/* The key makes each new value glow once. The figure keeps its element: it counts from the last value. */}
      <p className="figure">
        <span key={value} className={value === undefined ? "" : "glow"} />
        <span className="value">{shown === null ? "–" : format(shown)}</span>
      </p>
      <p className="note">{note}</p>
    </div>
  );
}
