/** For a token that names several centres. */
export function ChooseCentre({ tenants, onChoose }: { tenants: readonly string[]; onChoose: (tenantId: string) => void }) {
  return (
    <main className="sign-in">
      <section className="panel" aria-labelledby="centres-title">
        <h2 id="centres-title">Which centre?</h2>
        <ul className="centres">
          {tenants.map((tenant) => (
            <li key={tenant}><button onClick={() => onChoose(tenant)}>{tenant}</button></li>
          ))}
        </ul>
      </section>
    </main>
  );
}
