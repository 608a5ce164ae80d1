import { defineConfig } from "vitest/config";

const react18 = [
  { find: /^react$/, replacement: "react-18" },
  { find: /^react\/(.*)/, replacement: "react-18/$1" },
  { find: /^react-dom\/(.*)/, replacement: "react-dom-18/$1" },
];

export default defineConfig({
  test: {
    projects: [
      { test: { name: "core", include: ["tests/core/*.test.ts"], environment: "happy-dom" } },
      { test: { name: "react-19", include: ["tests/react/*.test.tsx"], environment: "happy-dom" } },
      {
        resolve: { alias: react18 },
        test: {
          name: "react-18",
          include: ["tests/react/*.test.tsx"],
          environment: "happy-dom",
          server: { deps: { inline: [/react-dom-18/] } },
        },
      },
      {
        test: {
          name: "browser",
          include: ["tests/browser/*.test.ts"],
          globalSetup: "tests/browser/harness/setup.ts",
          // The stacks are many processes each: one after the other.
          fileParallelism: false,
          testTimeout: 60_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
