import { connect, createServer, type Server, type Socket } from "node:net";
import { once } from "node:events";

/** One address for several gateways. Each connection goes to the next gateway that accepts it, and can be cut. */
export class Balancer {
  #server: Server;
  #links = new Set<Socket>();
  #next = 0;
  /** The ports of the gateways. */
  targets: number[];
  port = 0;

  constructor(targets: number[]) {
    this.targets = targets;
    this.#server = createServer((client) => this.#forward(client, this.targets.length));
  }

  async start(): Promise<this> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    const address = this.#server.address();
    if (typeof address === "object" && address) this.port = address.port;
    return this;
  }

  #forward(client: Socket, tries: number) {
    client.on("error", () => client.destroy());
    const target = this.targets[this.#next++ % this.targets.length];
    if (tries === 0 || target === undefined) return client.destroy();
    const gateway = connect(target, "127.0.0.1");
    gateway.once("error", () => {
      if (!gateway.readyState.startsWith("open")) this.#forward(client, tries - 1);
    });
    gateway.once("connect", () => {
      gateway.removeAllListeners("error").on("error", () => client.destroy());
      this.#links.add(client);
      client.pipe(gateway).pipe(client);
      client.once("close", () => {
        this.#links.delete(client);
        gateway.destroy();
      });
      gateway.once("close", () => client.destroy());
    });
  }

  /** Cuts every connection, without a close frame. */
  cut() {
    for (const link of this.#links) link.resetAndDestroy();
  }

  stop() {
    this.cut();
    this.#server.close();
  }
}
