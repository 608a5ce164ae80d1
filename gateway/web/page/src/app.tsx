import { lazy, Suspense, useState } from "react";
import { DashboardProvider, useDashboardState } from "../../src/react/index.js";
import { Alerts } from "./alerts.js";
import { Announcer } from "./announcer.js";
import { ConnectionState } from "./connection-state.js";
import { PaymentForm } from "./payment-form.js";
import { Payments } from "./payments.js";
import { getToken, hasTill } from "./session.js";
import { SignIn } from "./sign-in.js";
import { Tiles } from "./tiles.js";

// The largest part of the page, and the last that is looked at.
const InvoiceChart = lazy(() => import("./invoice-chart.js"));

export function App() {
  // Who signs in anew gets a new socket: nothing of the one before may stay.
  const [session, setSession] = useState(0);
  return (
    <DashboardProvider key={session} getToken={getToken}>
      <Page onSignIn={() => setSession(session + 1)} />
    </DashboardProvider>
  );
}

function Page({ onSignIn }: { onSignIn: () => void }) {
  const tenant = useDashboardState((state) => state.tenantId);
  const status = useDashboardState((state) => state.status);
  const signedOut = status.state === "closed" && (status.reason === "unauthorized" || status.reason === "forbidden");
  return (
    <>
      <header>
        <h1>CrecheBooks <span className="tenant">{tenant ?? ""}</span></h1>
        <ConnectionState />
      </header>
      {signedOut ? (
        <SignIn message={status.message} onSignIn={onSignIn} />
      ) : (
        <main>
          <Tiles />
          <Payments />
          <section className="panel chart" aria-labelledby="chart-title">
            <h2 id="chart-title">Invoices</h2>
            <Suspense fallback={null}><InvoiceChart /></Suspense>
          </section>
          <Alerts />
          {tenant && hasTill() ? <PaymentForm /> : null}
        </main>
      )}
      <Announcer />
    </>
  );
}
