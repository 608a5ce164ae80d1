import type { Status } from "../../src/core/index.js";
import { useDashboardState } from "../../src/react/index.js";
import { formatTime } from "./format.js";
import { useCountdown } from "./motion.js";

/** How fresh the dashboard is: the state of its connection, and the time of the last update. */
export function ConnectionState() {
  const status = useDashboardState((state) => state.status);
  const lastUpdate = useDashboardState((state) => state.lastUpdate);
  const seconds = useCountdown(status.state === "reconnecting" ? status.retryAt : null);
  return (
    <div className={`connection ${status.state}`}>
      <p className="state">
        <span role="status" id="connection">{describe(status)}</span>
        {/* Hidden from screen readers: they would read it every second. */}
        {seconds !== null && <span aria-hidden="true"> in {seconds} s</span>}
      </p>
      <p className="updated">{lastUpdate === null ? "no figures yet" : <>last update <time>{formatTime(lastUpdate)}</time></>}</p>
    </div>
  );
}

function describe(status: Status): string {
  switch (status.state) {
    case "connecting":
      return "Connecting …";
    case "connected":
      return "Live";
    case "degraded":
      return `Delayed since ${formatTime(status.since)}`;
    case "reconnecting":
      if (status.offline) return "Offline";
      return status.retryAt === null ? "Reconnecting …" : "Reconnecting";
    case "polling":
      return `Refreshed every ${status.everySeconds} s`;
    case "closed":
      return "Not connected";
  }
}
