import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const modules18 = fileURLToPath(new URL("tests/react-18/node_modules/", import.meta.url));

export default defineConfig({
  test: {
    projects: [
      { test: { name: "core", include: ["tests/core/*.test.ts"], environment: "happy-dom" } },
      { test: { name: "react-19", include: ["tests/react/*.test.tsx"], environment: "happy-dom" } },
      {
        resolve: { alias: [{ find: /^(react|react-dom)(?=$|\/)/, replacement: `${modules18}$1` }] },
        test: {
          name: "react-18",
          include: ["tests/react/*.test.tsx"],
          environment: "happy-dom",
        },
      },
      {
        test: {
          name: "browser",
          include: ["tests/browser/*.test.ts"],
          globalSetup: "tests/browser/harness/setup.ts",
          // Each stack is many processes; one of the files does little but wait.
          maxWorkers: 2,
          testTimeout: 60_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
