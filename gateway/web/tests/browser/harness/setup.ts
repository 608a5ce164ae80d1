import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { root } from "./processes.js";

/** Builds the programs of the tests, with the page in the gateway. */
export default function setup() {
  if (!existsSync(`${root}/gateway/web/dist/index.html`)) throw new Error("the page is not built: npm run build");
  execFileSync("cargo", ["build", "--locked", "-p", "gateway", "-p", "publisher", "--bins", "--example", "billing_api"], { cwd: root, stdio: "inherit" });
}
