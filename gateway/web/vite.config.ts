import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

/** The page; what it becomes is embedded in the gateway's binary. */
export default defineConfig({
  root: "page",
  plugins: [react()],
  server: { proxy: { "/dashboard": { target: "http://127.0.0.1:8080", ws: true }, "/demo": "http://127.0.0.1:8080" } },
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    // The policy allows no data: script or style, and every file has its hash in its name.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2023",
  },
});
