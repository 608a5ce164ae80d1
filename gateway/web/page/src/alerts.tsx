import { useDashboardSocket } from "../../src/react/index.js";
import { formatRand } from "./format.js";

/** Arrears alerts, each until it is dismissed. */
export function Alerts() {
  const { alerts, dismissAlert } = useDashboardSocket();
  return (
    <section className="panel alerts" aria-labelledby="alerts-title">
      <h2 id="alerts-title">Arrears alerts {alerts.length > 0 && <span className="badge">{alerts.length}</span>}</h2>
      <div className="scroll" tabIndex={0} role="group" aria-labelledby="alerts-title">
        {alerts.length === 0 && <p className="empty">No new arrears since you opened this page.</p>}
        <ul>
          {alerts.map((alert) => (
            <li key={alert.id}>
              <span className="who">
                <span className="parent">{alert.parentName}</span>
                <span className="what">{formatRand(alert.totalArrears)}, {alert.daysOverdue} days overdue</span>
              </span>
              <button type="button" aria-label={`Dismiss the alert for ${alert.parentName}`} onClick={() => dismissAlert(alert.id)}>×</button>
            </li>
          ))}
        </ul>
      </div>
    </section>
  );
}
