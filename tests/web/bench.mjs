// How fast the page is, in figures: load, hover, click, pin and memory at three sizes. Headless, on whatever machine this
// is: compare figures of one machine only.
//
//     tests/web/run bench

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DALLAS, closeBrowser, drawn, missing, startServer, theBrowser, trace } from "./browser/harness.mjs";
import { writeSynthetic } from "./synthetic.mjs";

if (missing) {
  console.error(`no bench: ${missing}`);
  process.exit(1);
}
const dir = mkdtempSync(join(tmpdir(), "circuitscope-bench-"));
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] ?? NaN;
const worst = (list) => Math.max(...list);
const ms = (x) => `${x.toFixed(x < 10 ? 1 : 0)} ms`;

try {
  trace(dir, DALLAS, "dallas");
  writeSynthetic(dir, "links-220k", 1099, 219724);
  writeSynthetic(dir, "links-881k", 3530, 880579);
  console.log(
    "graph        first load  next load  hover            click            pin              slider           heap",
  );
  for (const slug of ["dallas", "links-220k", "links-881k"]) {
    const started = performance.now();
    const server = await startServer(dir);
    const browser = await theBrowser();
    const context = await browser.newContext({ viewport: { width: 1600, height: 800 } });
    const page = await context.newPage();
    const load = async () => {
      const start = performance.now();
      await page.goto(`${server.url}/?slug=${slug}`);
      await drawn(page);
      return performance.now() - start;
    };
    const up = performance.now() - started;
    const first = await load();
    const next = median([await load(), await load(), await load()]);
    await page.waitForTimeout(500);
    // What the pointer does, from the event to the frame that shows it and its links.
    const figures = await page.evaluate(async () => {
      const { app, plot } = /** @type {any} */ (window).circuitscope;
      const frame = () => new Promise((resolve) => requestAnimationFrame(() => resolve(performance.now())));
      const rect = plot.box.getBoundingClientRect();
      const pick = plot.shown.filter((_, i) => i % Math.max(1, Math.floor(plot.shown.length / 40)) === 0).slice(0, 40);
      const event = (type, n, more = {}) => {
        const [x, y] = plot.where(n);
        plot.box.dispatchEvent(
          new PointerEvent(type, {
            clientX: rect.left + x,
            clientY: rect.top + y,
            bubbles: true,
            button: 0,
            pointerId: 1,
            ...more,
          }),
        );
      };
      plot.box.setPointerCapture = () => {};
      const out = { hover: [], click: [], pin: [], slider: [] };
      const work = async (list, act, ready) => {
        await frame();
        await new Promise((resolve) => setTimeout(resolve, 60));
        const start = performance.now();
        act();
        const end = start + 3000;
        while (!ready() && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 1));
        await frame();
        list.push(performance.now() - start);
      };
      for (const n of pick) {
        await work(
          out.hover,
          () => event("pointermove", n),
          () => true,
        );
      }
      for (const n of pick.slice(0, 15)) {
        app.choose(null);
        await work(
          out.click,
          () => {
            event("pointerdown", n);
            event("pointerup", n);
          },
          () => app.clicked >= 0 && app.graph.links.has(app.clicked),
        );
      }
      for (const n of pick.slice(0, 10))
        await work(
          out.pin,
          () => {
            event("pointerdown", n, { ctrlKey: true });
            event("pointerup", n, { ctrlKey: true });
          },
          () => true,
        );
      app.store.reset({ ...app.view, pinned: [] });
      for (const t of [0.9, 0.7, 0.5, 0.8])
        await work(
          out.slider,
          () => app.setThresholds(t, 0.98),
          () => !app.pruning,
        );
      return out;
    });
    const cdp = await context.newCDPSession(page);
    await cdp.send("HeapProfiler.collectGarbage");
    const { usedSize, embedderHeapUsedSize = 0, backingStorageSize = 0 } = await cdp.send("Runtime.getHeapUsage");
    const two = (list) => `${ms(median(list))} / ${ms(worst(list))}`.padEnd(17);
    console.log(
      `${slug.padEnd(12)} ${ms(first).padEnd(11)} ${ms(next).padEnd(10)} ${two(figures.hover)}${two(figures.click)}${two(figures.pin)}${two(figures.slider)}${((usedSize + embedderHeapUsedSize + backingStorageSize) / 1e6).toFixed(1)} MB   (server up in ${ms(up)})`,
    );
    await context.close();
    await server.stop();
  }
  console.log(
    "median / worst, from the event to the frame that shows it: for a hover ring and tip (its links follow when they are there),\nfor a click all links of the node, for the slider the new cut; `first load` is of a server that has just started",
  );
} finally {
  await closeBrowser();
  rmSync(dir, { recursive: true, force: true });
}
