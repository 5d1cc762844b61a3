// The pictures of docs/gallery/page-*.png, taken anew: eight states of the page. Look at them one by one afterwards.
//
//     tests/web/run gallery

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  DALLAS,
  OAKLAND,
  closeBrowser,
  clickNode,
  drawn,
  missing,
  startServer,
  theBrowser,
  trace,
  until,
  where,
} from "./browser/harness.mjs";
import { writeSynthetic } from "./synthetic.mjs";

if (missing) {
  console.error(`no pictures: ${missing}`);
  process.exit(1);
}
const out = process.env.GALLERY ?? resolve(dirname(fileURLToPath(import.meta.url)), "../../docs/gallery");
const dir = mkdtempSync(join(tmpdir(), "circuitscope-gallery-"));
const STORY =
  "pinnedIds=0_39_7,3_955_8,3_260_8,0_656_2,0_90_2,0_68_2,5_2371_8&supernodes=" +
  encodeURIComponent('[["the word capital","0_656_2","0_90_2","0_68_2"]]');

try {
  trace(dir, OAKLAND, "oakland");
  trace(dir, DALLAS, "dallas");
  writeSynthetic(dir, "large", 1099, 219724);
  const server = await startServer(dir);
  /** @param {string} name @param {string} query @param {(page: import("playwright-core").Page) => Promise<void>} act */
  const take = async (name, query, act, { width = 1280, height = 720, dark = false } = {}) => {
    const context = await (
      await theBrowser()
    ).newContext({ viewport: { width, height }, colorScheme: dark ? "dark" : "light" });
    const page = await context.newPage();
    await page.goto(`${server.url}/?${query}`);
    await drawn(page);
    await page.waitForTimeout(500);
    await act(page);
    await page.waitForTimeout(500);
    await page.screenshot({ path: join(out, `page-${name}.png`) });
    // A palette of 256 colours is enough, where the tool for it is installed.
    try {
      execFileSync("pngquant", ["--force", "--skip-if-larger", "--ext", ".png", join(out, `page-${name}.png`)]);
    } catch {
      /* as it is */
    }
    console.log(`page-${name}.png`);
    await context.close();
  };
  await take("overview", "slug=dallas", async () => {});
  await take("node", `slug=dallas&${STORY}`, async (page) => {
    await clickNode(page, "3_955_8");
    await page.mouse.move(900, 20);
  });
  await take(
    "wide",
    `slug=dallas&${STORY}&clickedId=0_39_7`,
    async (page) => {
      const at = await where(page, "3_260_8");
      await page.mouse.move(at.x, at.y);
    },
    { width: 1600, height: 900, dark: true },
  );
  await take("whatif", `slug=dallas&${STORY}&tab=whatif`, async (page) => {
    await page.getByRole("combobox", { name: "How to change Texas" }).selectOption("ablate");
    const add = page.getByRole("textbox", { name: /^Add features/ });
    await add.fill("1_224_7=0, 0_303_7=13.87, 0_400_7=11.456, 2_262_7=1.92, 1_17_7=1.675, 3_474_7=16.885");
    await add.press("Enter");
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.locator(".words").nth(1).getByText("Sacramento").waitFor();
    await page.waitForTimeout(400);
    await page.locator(".whatif").evaluate((box) => box.scrollTo(0, 330));
  });
  await take(
    "sweep",
    `slug=dallas&${STORY}&tab=whatif`,
    async (page) => {
      await page.getByRole("combobox", { name: "What to sweep" }).selectOption({ label: "Texas" });
      await page.getByRole("button", { name: "Run sweep" }).click();
      await page.locator(".sweep-plot .point").nth(3).waitFor();
      await page.locator(".whatif").evaluate((box) => box.scrollTo(0, 9999));
    },
    { dark: true },
  );
  await take("compare", "slug=dallas&compare=oakland&tab=compare", async (page) => {
    await page.locator(".compare-row").first().waitFor();
    const at = await where(page, "3_955_8");
    await page.mouse.move(at.x, at.y);
  });
  await take("trace", "slug=dallas", async (page) => {
    await page.keyboard.press("n");
    await page.locator(".top-tokens .bar-row").first().waitFor();
  });
  await take(
    "large",
    "slug=large",
    async (page) => {
      const id = await page.evaluate(() => {
        const { app } = /** @type {any} */ (window).circuitscope;
        return app.graph.header.targets[0].id;
      });
      await page.evaluate((id) => /** @type {any} */ (window).circuitscope.app.choose(id), id);
      await until(page, "app.graph.links.has(app.clicked)");
    },
    { width: 1600, height: 900 },
  );
  await server.stop();
} finally {
  await closeBrowser();
  rmSync(dir, { recursive: true, force: true });
}
