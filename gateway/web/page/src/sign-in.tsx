import { type FormEvent, useState } from "react";
import { signIn } from "./session.js";

export function SignIn({ message, onSignIn }: { message: string; onSignIn: () => void }) {
  const [token, setToken] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    signIn(token.trim());
    onSignIn();
  };
  return (
    <main className="sign-in">
      <form className="panel" onSubmit={submit}>
        <h2>Sign in</h2>
        <p role="alert">{message}</p>
        <label htmlFor="token">Token</label>
        <input id="token" type="password" autoComplete="off" required value={token} onChange={(event) => setToken(event.target.value)} />
        <button>Connect</button>
      </form>
    </main>
  );
}
