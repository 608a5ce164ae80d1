import { lazy, Suspense, useEffect, useState } from "react";
import { DashboardProvider, useDashboardState } from "../../src/react/index.js";
import { Alerts } from "./alerts.js";
import { Announcer } from "./announcer.js";
import { ChooseCentre } from "./choose-centre.js";
import { ConnectionState } from "./connection-state.js";
import { PaymentForm } from "./payment-form.js";
import { Payments } from "./payments.js";
import { getToken, hasTill, isSignedIn, signOut } from "./session.js";
import { SignIn } from "./sign-in.js";
import { Tiles } from "./tiles.js";

// The largest part of the page, and the least urgent: it loads after the others.
const InvoiceChart = lazy(() => import("./invoice-chart.js"));

export function App() {
  // Another user or another centre gets a new socket: nothing of the last one may stay.
  const [session, setSession] = useState<{ number: number; tenantId?: string }>({ number: 0 });
  const begin = (tenantId?: string) => setSession(({ number }) => ({ number: number + 1, ...(tenantId !== undefined && { tenantId }) }));
  const { number, ...choice } = session;
  return (
    <DashboardProvider key={number} getToken={getToken} {...choice}>
      <Page onBegin={begin} />
    </DashboardProvider>
  );
}

function Page({ onBegin }: { onBegin: (tenantId?: string) => void }) {
  const tenant = useDashboardState((state) => state.tenantId);
  const status = useDashboardState((state) => state.status);
  const closed = status.state === "closed" ? status.reason : null;
  const refused = closed === "unauthorized" || closed === "forbidden";
  // The next reload must not try a refused token again.
  useEffect(() => {
    if (refused) signOut();
  }, [refused]);
  const leave = () => {
    signOut();
    onBegin();
  };
  return (
    <>
      <header>
        <h1>CrecheBooks <span className="tenant">{tenant ?? ""}</span></h1>
        <ConnectionState />
        {isSignedIn() && !refused ? <button className="sign-out" onClick={leave}>Sign out</button> : null}
      </header>
      {status.state === "closed" && refused ? (
        <SignIn message={status.message} onSignIn={onBegin} />
      ) : status.state === "closed" && status.tenants ? (
        <ChooseCentre tenants={status.tenants} onChoose={onBegin} />
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
