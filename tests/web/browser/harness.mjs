// What the browser tests share: the program, servers of their own with folders of their own, and pages that tolerate no
// error on the console, no breach of the content policy, and no request that leaves this machine.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../../..");
export const BINARY = process.env.CIRCUITSCOPE ?? join(root, "target/release/circuitscope");
const BROWSERS = [process.env.CHROMIUM, "/usr/bin/chromium-headless-shell", "/usr/bin/chromium"].filter(
  (path) => path && existsSync(path),
);

export const DALLAS = "The capital of the state containing Dallas is";
export const OAKLAND = "The capital of the state containing Oakland is";

/** Why browser tests cannot run here, or false. In CI that is a failure. */
export const missing = !existsSync(BINARY) ? `no program at ${BINARY}` : BROWSERS.length === 0 ? "no Chromium" : false;
if (missing && process.env.CI) throw new Error(`browser tests cannot run: ${missing}`);
export const options = { skip: missing, timeout: 90_000 };

/** Open pages of a test. @type {Map<unknown, import("playwright-core").BrowserContext[]>} */
const contexts = new Map();

/** Whatever a test that failed has left running. @type {Set<import("node:child_process").ChildProcess>} */
const children = new Set();

/** @type {import("playwright-core").Browser|null} */
let browser = null;
export async function theBrowser() {
  browser ??= await chromium.launch({ executablePath: BROWSERS[0], args: ["--no-sandbox"] });
  return browser;
}
export async function closeBrowser() {
  for (const child of children) child.kill("SIGKILL");
  await browser?.close();
  browser = null;
}

/** A folder that is gone when the test is. @param {import("node:test").TestContext} t */
export function folder(t) {
  const path = mkdtempSync(join(tmpdir(), "circuitscope-page-"));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A graph of the built-in model in `dir`. @param {string} dir @param {string} prompt @param {string} slug */
export function trace(dir, prompt, slug, ...more) {
  execFileSync(BINARY, ["trace", prompt, "--slug", slug, "--out-dir", dir, "--quiet", ...more], {
    stdio: ["ignore", "ignore", "pipe"],
  });
}

/** @param {string} dir @param {string[]} [args] @param {number} [port] */
export async function startServer(dir, args = [], port = 0) {
  const page = process.env.CIRCUITSCOPE_PAGE ? ["--page", process.env.CIRCUITSCOPE_PAGE] : [];
  const child = spawn(BINARY, ["serve", dir, "--port", String(port), ...page, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.add(child);
  child.on("exit", () => children.delete(child));
  let said = "";
  const url = await new Promise((resolve, reject) => {
    const hear = (/** @type {Buffer} */ data) => {
      said += data;
      const match = /(http:\/\/127\.0\.0\.1:\d+)\/?/.exec(said);
      if (match) resolve(match[1]);
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    child.on("exit", (code) => reject(new Error(`the server ended with ${code}: ${said}`)));
    setTimeout(() => reject(new Error(`the server did not start: ${said}`)), 20_000).unref();
  });
  const stop = (/** @type {NodeJS.Signals} */ signal = "SIGTERM") =>
    new Promise((done) => {
      if (child.exitCode !== null || child.signalCode !== null) {
        done(null);
        return;
      }
      child.on("exit", () => done(null));
      child.kill(signal);
    });
  return { url: String(url), port: Number(String(url).split(":").pop()), stop, pid: child.pid ?? 0, said: () => said };
}

/** A server that ends with the test. @param {import("node:test").TestContext} t @param {string} dir @param {string[]} [args] */
export async function serve(t, dir, args = []) {
  const server = await startServer(dir, args);
  // Pages first: what they ask a server that is gone would be an error.
  t.after(async () => {
    await Promise.all((contexts.get(t) ?? []).map((context) => context.close()));
    await server.stop();
  });
  return server;
}

/**
 * A page that is watched.
 * @param {import("node:test").TestContext} t
 * @param {{width?: number, height?: number, dark?: boolean, allow?: RegExp, downloads?: boolean}} [options] `allow`: errors that the test brings about
 */
export async function openPage(t, { width = 1280, height = 720, dark = false, allow } = {}) {
  const context = await (
    await theBrowser()
  ).newContext({ viewport: { width, height }, colorScheme: dark ? "dark" : "light", acceptDownloads: true });
  contexts.set(t, [...(contexts.get(t) ?? []), context]);
  const page = await context.newPage();
  /** @type {string[]} */
  const wrong = [];
  const note = (/** @type {string} */ text) => {
    if (!allow?.test(text) && !(process.env.NOFEAT && /features/.test(text))) wrong.push(text);
  };
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()))
      note(`console ${message.type()}: ${message.text()} ${message.location().url}`);
  });
  page.on("pageerror", (error) => note(`page error: ${error.stack ?? error.message}`));
  page.on("request", (request) => {
    if (!/^(http:\/\/127\.0\.0\.1:\d+\/|data:|blob:)/.test(request.url())) wrong.push(`a request leaves: ${request.url()}`);
  });
  page.on("response", async (response) => {
    if (response.status() >= 400) note(`${response.status()} ${response.url()} ${await response.text().catch(() => "")}`);
  });
  page.on("crash", () => wrong.push("the page crashed"));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) =>
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`),
    );
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(wrong, [], "errors while the page was open");
  });
  return page;
}

/** Waits until a graph is drawn. @param {import("playwright-core").Page} page @param {string} [id] */
export async function drawn(page, id) {
  await page.waitForFunction(
    (id) => {
      const { app, plot } = /** @type {any} */ (window).circuitscope ?? {};
      return app?.graph && !app.loading && (!id || app.graph.id === id) && plot.places && plot.corner.textContent !== "";
    },
    id,
    { timeout: 20_000 },
  );
}

/** Where a node is on the screen. @param {import("playwright-core").Page} page @param {string} id */
export async function where(page, id) {
  return page.evaluate((id) => {
    const { app, plot } = /** @type {any} */ (window).circuitscope;
    const [x, y] = plot.where(app.graph.numberOf(id));
    const rect = plot.box.getBoundingClientRect();
    return { x: rect.left + x, y: rect.top + y };
  }, id);
}

/** Clicks a node in the link graph. @param {import("playwright-core").Page} page @param {string} id @param {("Control"|"Shift")[]} [keys] */
export async function clickNode(page, id, keys = []) {
  const at = await where(page, id);
  for (const key of keys) await page.keyboard.down(key);
  await page.mouse.move(at.x, at.y);
  await page.mouse.click(at.x, at.y);
  for (const key of keys) await page.keyboard.up(key);
}

/** The view, as the page has it. @param {import("playwright-core").Page} page */
export const view = (page) => page.evaluate(() => /** @type {any} */ (window).circuitscope.app.view);

/** Waits until something about the app is so. @param {import("playwright-core").Page} page @param {string} what an expression over `app` */
export const until = (page, what, timeout = 15_000) =>
  page.waitForFunction(
    new Function(`const { app, plot, circuit } = window.circuitscope ?? {}; return app && (${what});`),
    undefined,
    { timeout },
  );
