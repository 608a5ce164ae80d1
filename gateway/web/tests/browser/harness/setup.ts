import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { root } from "./processes.js";

/** Builds what the tests run, with the page in it. */
export default function setup() {
  if (!existsSync(`${root}/gateway/web/dist/index.html`)) throw new Error("the page is not built: npm run build");
  execFileSync("cargo", ["build", "--locked", "-p", "gateway", "-p", "publisher", "--bins", "--example", "billing_api"], { cwd: root, stdio: "inherit" });
}
