import { createServer, type Server } from "node:http";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { build } from "vite";

/** A page on an origin of its own, with this client in it, like a company's site with the gateway on another host. */
export class Elsewhere {
  #server!: Server;
  origin = "";

  async start(): Promise<this> {
    const script = await bundle();
    this.#server = createServer((request, response) => {
      const isScript = request.url === "/client.js";
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html").end(isScript ? script : PAGE);
    }).listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    const address = this.#server.address();
    if (typeof address === "object" && address) this.origin = `http://127.0.0.1:${address.port}`;
    return this;
  }

  /** The page that shows this gateway's dashboard. */
  page = (gateway: string, token: string) => `${this.origin}/?${new URLSearchParams({ gateway, token })}`;

  stop() {
    this.#server.close();
  }
}

const PAGE = `<!doctype html><html lang="en"><title>Elsewhere</title><link rel="icon" href="data:,">
<p id="connection"></p><ul id="payments"></ul>
<script type="module">
  import { DashboardSocket } from "./client.js";
  const { gateway: url, token } = Object.fromEntries(new URLSearchParams(location.search));
  const dashboard = new DashboardSocket({ url, getToken: async () => token });
  dashboard.subscribe(() => {
    const { status, payments } = dashboard.getState();
    connection.textContent = status.state;
    document.querySelector("#payments").replaceChildren(...payments.map(({ paymentId }) => {
      const row = document.createElement("li");
      row.dataset.payment = row.textContent = paymentId;
      return row;
    }));
  });
  dashboard.connect();
</script></html>`;

/** The client as one module. */
async function bundle(): Promise<string> {
  const entry = fileURLToPath(new URL("../../../src/core/index.ts", import.meta.url));
  const built = await build({ configFile: false, logLevel: "warn", build: { write: false, minify: false, lib: { entry, formats: ["es"] } } });
  const [output] = [built].flat();
  if (!output || !("output" in output)) throw new Error("nothing was built");
  return output.output[0].code;
}
