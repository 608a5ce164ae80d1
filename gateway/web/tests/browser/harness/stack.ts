import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { eventually, freePort, root, scratch, Server } from "./processes.js";

const SECRET = "the secret of the browser tests, long enough";
const PUBLISH_KEY = "publish-key-of-the-browser-tests";
const GATEWAY = `${root}/target/debug/gateway`;
const BILLING = `${root}/target/debug/examples/billing_api`;

export const ACORN = "acorn-montessori";
/** The other centre of the reference books. */
export const OTHER = "load-1";

/** Debian keeps PostgreSQL's programs out of PATH. */
function postgresProgram(name: string): string {
  const versions = "/usr/lib/postgresql";
  const installed = readdirSync(versions).sort().map((version) => `${versions}/${version}/bin/${name}`);
  const newest = installed.filter((program) => existsSync(program)).at(-1);
  if (!newest) throw new Error("PostgreSQL is not installed");
  return newest;
}

/** PostgreSQL refuses to run as root. */
function postgresUser(): { uid: number; gid: number } | {} {
  if (process.getuid?.() !== 0) return {};
  const entry = readFileSync("/etc/passwd", "utf8").split("\n").find((line) => line.startsWith("postgres:"));
  const [, , uid, gid] = entry?.split(":") ?? [];
  return { uid: Number(uid), gid: Number(gid) };
}

/** A real Redis, a real PostgreSQL with the reference books, the billing API on them, and any number of gateways. */
export class Stack {
  readonly #ends: (() => unknown)[] = [];
  redis!: Server;
  billing!: Server;
  databaseUrl = "";

  static async start(): Promise<Stack> {
    const stack = new Stack();
    const directory = scratch();
    stack.#ends.push(directory.remove);
    await Promise.all([stack.#startRedis(directory.path), stack.#startPostgres(directory.path)]);
    execFileSync(GATEWAY, ["migrate", "--reference"], { env: { DATABASE_URL: stack.databaseUrl }, stdio: "pipe" });
    const port = await freePort();
    const args = ["--seed", "--seed-load", "1", "--sweep-seconds", "3600", "--listen", `127.0.0.1:${port}`];
    stack.billing = await stack.#run(new Server(port, BILLING, args, { env: { DATABASE_URL: stack.databaseUrl } }));
    return stack;
  }

  async #run(server: Server): Promise<Server> {
    this.#ends.push(() => server.stop());
    return server.start();
  }

  async #startRedis(directory: string) {
    const port = await freePort();
    this.redis = await this.#run(new Server(port, "redis-server", ["--port", `${port}`, "--save", "", "--dir", directory]));
  }

  async #startPostgres(directory: string) {
    const user = postgresUser();
    chmodSync(directory, 0o755);
    if ("uid" in user) chownSync(directory, user.uid, user.gid);
    const data = `${directory}/postgres`;
    execFileSync(postgresProgram("initdb"), ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D", data], { cwd: "/", stdio: "pipe", ...user });
    const port = await freePort();
    const settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "log_min_messages=fatal"];
    const args = ["-D", data, "-p", `${port}`, ...settings.flatMap((setting) => ["-c", setting])];
    await this.#run(new Server(port, postgresProgram("postgres"), args, user));
    this.databaseUrl = `postgres://postgres@127.0.0.1:${port}/postgres`;
    await eventually("PostgreSQL answers", () => execFileSync("psql", [this.databaseUrl, "-c", "select 1"], { stdio: "pipe" }));
  }

  async gateway(more: Record<string, string> = {}, args: string[] = []): Promise<Gateway> {
    const [port, internal] = [await freePort(), await freePort()];
    const env = {
      LISTEN: `127.0.0.1:${port}`,
      INTERNAL_LISTEN: `127.0.0.1:${internal}`,
      REDIS_URL: `redis://127.0.0.1:${this.redis.port}`,
      DATABASE_URL: this.databaseUrl,
      JWT_SECRET: SECRET,
      PUBLISH_API_KEY: PUBLISH_KEY,
      DRAIN_SECONDS: "1",
      ...more,
    };
    const gateway = new Gateway(port, internal, args, env);
    await this.#run(gateway);
    return gateway;
  }

  /** Records a payment at the billing API; returns its id. */
  async pay(tenant: string, invoice?: string): Promise<string> {
    const answer = await fetch(`http://127.0.0.1:${this.billing.port}/payments`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": randomUUID() },
      body: JSON.stringify({ tenantId: tenant, invoiceId: invoice ?? (await this.openInvoice(tenant)), amount: 1 }),
    });
    if (answer.status !== 201) throw new Error(`payment: ${answer.status} ${await answer.text()}`);
    return (await answer.json()).paymentId;
  }

  /** An invoice with a balance. */
  async openInvoice(tenant: string): Promise<string> {
    const answer = await fetch(`http://127.0.0.1:${this.billing.port}/tenants/${tenant}/invoices?status=PENDING`);
    const partly = await fetch(`http://127.0.0.1:${this.billing.port}/tenants/${tenant}/invoices?status=PARTIALLY_PAID`);
    const invoices: { invoiceId: string; balance: number }[] = [...(await partly.json()), ...(await answer.json())];
    const open = invoices.find((invoice) => invoice.balance > 100);
    if (!open) throw new Error("no invoice is open");
    return open.invoiceId;
  }

  /** A token like CrecheBooks'. */
  token(tenants: string | string[], seconds = 3600): string {
    const named = [tenants].flat().flatMap((tenant) => ["--tenant", tenant]);
    return execFileSync(GATEWAY, ["token", ...named, "--sub", "browser", "--ttl", `${seconds}`], { env: { JWT_SECRET: SECRET } }).toString().trim();
  }

  async stop() {
    for (const end of this.#ends.reverse()) await end();
  }
}

export class Gateway extends Server {
  constructor(port: number, readonly internal: number, args: string[], env: Record<string, string>) {
    super(port, GATEWAY, args, { env });
  }

  async #post(path: string, body?: unknown) {
    const headers = { authorization: `Bearer ${PUBLISH_KEY}`, "content-type": "application/json" };
    const init: RequestInit = { method: "POST", headers };
    if (body) init.body = JSON.stringify(body);
    // On a busy machine Redis may answer too late: then the same event is sent again, as every caller should.
    await eventually(`${path} is accepted`, async () => {
      const answer = await fetch(`http://127.0.0.1:${this.internal}/v1/tenants/${path}`, init);
      if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
      return true;
    });
  }

  /** The answer to a page that polls. */
  async snapshot(token: string): Promise<string> {
    const answer = await fetch(`http://127.0.0.1:${this.port}/dashboard/snapshot`, { headers: { authorization: `Bearer ${token}` } });
    return answer.text();
  }

  /** Publishes without the billing API. */
  publish(tenant: string, type: string, data: unknown) {
    return this.#post(`${tenant}/events`, { type, data, id: randomUUID() });
  }

  /** Closes the tenant's sockets with 4401. */
  kick(tenant: string) {
    return this.#post(`${tenant}/disconnect`);
  }
}
