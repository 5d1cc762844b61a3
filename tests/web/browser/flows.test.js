import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import {
  DALLAS,
  OAKLAND,
  clickNode,
  closeBrowser,
  drawn,
  folder,
  openPage,
  options,
  serve,
  startServer,
  trace,
  until,
  view,
  where,
} from "./harness.mjs";

after(closeBrowser);

const TEXAS = "0_39_7",
  ASKS = "3_955_8";

test("from_nothing_to_a_story_that_is_still_there_after_a_reload", options, async (t) => {
  const server = await serve(t, folder(t));
  const page = await openPage(t);
  await page.goto(server.url);
  await drawn(page);
  await page.keyboard.press("n");
  await page.getByRole("textbox", { name: "Prompt" }).fill(DALLAS);
  await page.locator(".top-tokens .bar-row").first().waitFor();
  assert.match(await page.locator(".top-tokens .bar-row").first().innerText(), /1\.000\s+Austin/);
  await page.locator("dialog footer").getByRole("button", { name: "Trace", exact: true }).click();
  await page.getByRole("heading", { name: "New trace" }).waitFor({ state: "detached" });
  await drawn(page);
  assert.equal(await page.evaluate(() => /** @type {any} */ (window).circuitscope.app.graph.header.prompt), DALLAS);

  await clickNode(page, TEXAS);
  await page.getByRole("heading", { name: "Texas" }).first().waitFor();
  await until(page, "app.graph.links.size > 0");
  assert.match(await page.locator(".proof").innerText(), /=\s22\.296\s✓/);

  await page.keyboard.press("p");
  await clickNode(page, ASKS, ["Control"]);
  await clickNode(page, "0_656_2", ["Control"]);
  await clickNode(page, "0_90_2", ["Control"]);
  assert.deepEqual((await view(page)).pinned, [TEXAS, ASKS, "0_656_2", "0_90_2"]);
  await page.locator("g.box.feature").first().waitFor();

  await page.keyboard.down("g");
  await clickNode(page, "0_656_2");
  await clickNode(page, "0_90_2");
  await page.keyboard.up("g");
  assert.deepEqual((await view(page)).groups, [{ name: '"capital"', ids: ["0_656_2", "0_90_2"] }]);
  await page.keyboard.press("e");
  await page.getByRole("textbox", { name: "Name" }).fill("the word capital");
  await page.keyboard.press("Enter");
  await until(page, "app.view.groups[0].name === 'the word capital'");
  await page.locator("g.box.group").waitFor();

  await page.waitForTimeout(300);
  const before = await view(page);
  await page.reload();
  await drawn(page);
  assert.deepEqual(await view(page), before);
  await page.locator("g.box.group").waitFor();
});

test("pins_drag_undo_and_redo", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  await page.getByRole("button", { name: "Pin the strongest" }).click();
  const box = page.locator(`g.box[data-key="${TEXAS}"]`);
  await box.waitFor();
  const from = await box.boundingBox();
  assert.ok(from);
  await page.mouse.move(from.x + 8, from.y + 8);
  await page.mouse.down();
  await page.mouse.move(from.x + 60, from.y + 30, { steps: 6 });
  await page.mouse.up();
  assert.ok((await view(page)).places[TEXAS], "it has a place of its own");
  const to = await box.boundingBox();
  assert.ok(to && Math.abs(to.x - from.x - 52) < 6 && Math.abs(to.y - from.y - 22) < 6, JSON.stringify([from, to]));
  await page.keyboard.press("z");
  assert.deepEqual((await view(page)).places, {});
  await page.keyboard.press("Shift+Z");
  assert.ok((await view(page)).places[TEXAS]);
  await page.getByRole("button", { name: "Tidy" }).click();
  assert.deepEqual((await view(page)).places, {});
  await page.keyboard.press("z");
  await page.keyboard.press("z");
  await page.keyboard.press("z");
  assert.deepEqual((await view(page)).pinned, []);
});

test("thresholds_prune_the_raw_graph_while_one_drags", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  assert.match(
    await page.locator("#plot .corner").innerText(),
    /^24 nodes · all 74 links · explains repl 0\.630 compl 0\.885$/,
  );
  const slider = page.getByRole("slider", { name: "node threshold" });
  const box = await slider.boundingBox();
  assert.ok(box);
  await page.mouse.move(box.x + box.width * 0.77, box.y + box.height / 2);
  await page.mouse.down();
  for (let x = 0.77; x >= 0.3; x -= 0.03) await page.mouse.move(box.x + box.width * x, box.y + box.height / 2);
  await page.mouse.up();
  await until(page, "app.graph.cut.nodes.length < 24 && !app.pruning");
  const low = await page.evaluate(() => /** @type {any} */ (window).circuitscope.app.graph.cut.info);
  const asked = (await view(page)).nodeThreshold;
  assert.equal(low.node_threshold, asked, "the last wish is what is shown");
  await slider.focus();
  await page.keyboard.press("End");
  await page.getByRole("slider", { name: "edge threshold" }).focus();
  await page.keyboard.press("End");
  await until(page, "app.graph.cut.nodes.length > 180 && app.graph.cut.info.edge_threshold === 1");
  assert.match(await page.locator("#plot .corner").innerText(), /2,000 of [\d,]+ links = \d+(\.\d)? % of the weight/);
  await page.waitForTimeout(250);
  await page.reload();
  await drawn(page);
  assert.equal((await view(page)).nodeThreshold, 1);
});

test("texas_off_and_california_on_gives_sacramento", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas&pinnedIds=${TEXAS},${ASKS},3_260_8&tab=whatif`);
  await drawn(page);
  await page.getByRole("combobox", { name: "How to change Texas" }).selectOption("ablate");
  const add = page.getByRole("textbox", { name: /^Add features/ });
  await add.fill("1_224_7=0, 0_303_7=13.87, 0_400_7=11.456, 2_262_7=1.92, 1_17_7=1.675, 3_474_7=16.885");
  await add.press("Enter");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.locator(".verdict").waitFor();
  assert.match(await page.locator(".outcome table.tokens").first().innerText(), /Sacramento\s+<0\.001\s+1\.000/);
  await page.locator(".words").nth(1).getByText("Sacramento").waitFor();
  assert.match(await page.locator(".words").nth(0).innerText(), /Austin/);
  await page.locator(`g.box[data-key="3_260_8"] .badge`).waitFor();
  assert.equal(await page.locator(`g.box[data-key="3_260_8"] .badge`).textContent(), "−100 %");
  await page.getByRole("button", { name: "Run sweep" }).click();
  await page.locator(".sweep-plot .point").nth(3).waitFor();
  await page.waitForTimeout(200);
  await page.reload();
  await drawn(page);
  assert.equal((await view(page)).plan.length, 7, "the plan is in the link");
});

test("a_group_is_steered_as_one", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  const groups = encodeURIComponent(JSON.stringify([["capital", "0_656_2", "0_90_2", "0_68_2"]]));
  await page.goto(`${server.url}/?slug=dallas&pinnedIds=0_656_2,0_90_2,0_68_2,${TEXAS}&supernodes=${groups}&tab=whatif`);
  await drawn(page);
  await page.getByRole("spinbutton", { name: "Exact value for capital" }).fill("0.5");
  await page.keyboard.press("Tab");
  await page.getByRole("spinbutton", { name: "Tokens to generate" }).fill("0");
  await page.keyboard.press("Tab");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.locator(".verdict").waitFor();
  await page.locator("g.box.group .badge").waitFor();
  assert.match(String(await page.locator("g.box.group .badge").textContent()), /^50 %$/);
});

test("export_gives_the_circuit_as_it_stands", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  const groups = encodeURIComponent(JSON.stringify([["my <group> & co", "0_656_2", "0_90_2"]]));
  await page.goto(`${server.url}/?slug=dallas&pinnedIds=${TEXAS},${ASKS}&supernodes=${groups}`);
  await drawn(page);
  await page.locator("g.box.group").waitFor();
  await page.keyboard.press("x");
  const get = async (/** @type {string} */ name) => {
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("button", { name, exact: true }).click(),
    ]);
    return { name: download.suggestedFilename(), bytes: readFileSync(await download.path()) };
  };
  const svg = await get("SVG");
  assert.equal(svg.name, "dallas-circuit.svg");
  const text = svg.bytes.toString("utf8");
  assert.match(text, /^<\?xml/);
  assert.match(text, /Texas/);
  assert.match(text, /my &lt;group&gt; &amp; co/);
  assert.doesNotMatch(text, /class=|var\(/, "it stands alone");
  const png = await get("PNG");
  assert.deepEqual([...png.bytes.subarray(0, 8)], [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  assert.ok(png.bytes.length > 5000);
  const json = JSON.parse((await get("JSON")).bytes.toString("utf8"));
  assert.deepEqual(json.qParams.supernodes, [["my <group> & co", "0_656_2", "0_90_2"]]);
  assert.deepEqual(json.qParams.pinnedIds, [TEXAS, ASKS, "0_656_2", "0_90_2"]);
  assert.ok(json.nodes.length > 20 && json.links.length > 50);
});

test("what_is_saved_comes_back_from_the_next_server", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const first = await startServer(dir);
  const page = await openPage(t, { allow: /ERR_CONNECTION|Failed to load resource/ });
  await page.goto(`${first.url}/?slug=dallas`);
  await drawn(page);
  await clickNode(page, TEXAS, ["Control"]);
  await clickNode(page, TEXAS);
  await page.keyboard.press("e");
  await page.getByRole("textbox", { name: /^Label/ }).fill("Lone Star");
  await page.keyboard.press("Enter");
  await until(page, "app.view.labels['0_39']");
  await page.keyboard.press("Escape");
  await page.getByRole("textbox", { name: "Note" }).fill("Texas, not\nDallas itself");
  await page.getByRole("textbox", { name: "Note" }).blur();
  await page.keyboard.press("s");
  await page.getByText("Saved into the graph’s file.").waitFor();
  await first.stop("SIGKILL");
  const file = JSON.parse(readFileSync(join(dir, "dallas.json"), "utf8"));
  assert.deepEqual([file.qParams.pinnedIds].flat().join(","), TEXAS);
  const second = await startServer(dir);
  t.after(() => second.stop());
  const other = await openPage(t);
  await other.goto(`${second.url}/?slug=dallas`);
  await drawn(other);
  const got = await view(other);
  assert.deepEqual(got.pinned, [TEXAS]);
  assert.deepEqual(got.labels, { "0_39": "Lone Star" });
  assert.equal(got.note, "Texas, not\nDallas itself");
  assert.equal(await other.locator("#actions button").nth(1).innerText(), "Saved");
});

test("two_pages_that_save_lose_nothing", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const one = await openPage(t, { allow: /412/ });
  const two = await openPage(t, { allow: /412/ });
  for (const page of [one, two]) {
    await page.goto(`${server.url}/?slug=dallas`);
    await drawn(page);
  }
  await clickNode(one, TEXAS, ["Control"]);
  await clickNode(two, ASKS, ["Control"]);
  await one.keyboard.press("s");
  await one.getByText("Saved into the graph’s file.").waitFor();
  await two.keyboard.press("s");
  await two.getByRole("heading", { name: "Somebody else has saved this graph" }).waitFor();
  await two.getByRole("button", { name: "Keep both" }).click();
  await two.getByText("Saved into the graph’s file.").waitFor();
  const file = JSON.parse(readFileSync(join(dir, "dallas.json"), "utf8"));
  assert.deepEqual([file.qParams.pinnedIds].flat().join(",").split(",").sort(), [TEXAS, ASKS].sort());
});

test("a_server_that_dies_and_comes_back_finds_the_page_as_it_was", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const first = await startServer(dir);
  const page = await openPage(t, {
    allow: /ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_SOCKET|Failed to load resource/,
  });
  await page.goto(`${first.url}/?slug=dallas`);
  await drawn(page);
  await clickNode(page, TEXAS, ["Control"]);
  await page.locator(`g.box[data-key="${TEXAS}"]`).waitFor();
  await first.stop("SIGKILL");
  await clickNode(page, ASKS, ["Control"]);
  await page.getByText("The server does not answer.").waitFor();
  assert.deepEqual((await view(page)).pinned, [TEXAS, ASKS], "the page works on");
  const second = await startServer(dir, [], first.port);
  t.after(() => second.stop());
  await page.getByText("The server is back.").waitFor({ timeout: 10_000 });
  await page.locator(`g.box[data-key="${ASKS}"]`).waitFor();
  assert.equal(await page.locator("#banner").isVisible(), false);
  await page.keyboard.press("s");
  await page.getByText("Saved into the graph’s file.").waitFor();
});

test("everything_can_be_done_from_the_keyboard", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  const press = (/** @type {string} */ ...keys) =>
    keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
  await page.locator(".plot").first().focus();
  await press("ArrowUp");
  assert.equal((await view(page)).clicked, "5_2371_8", "arrows begin at the target");
  await until(page, "app.graph.links.has(app.clicked)");
  await press("ArrowDown");
  assert.equal((await view(page)).clicked, ASKS, "down the strongest link");
  await press("p");
  await press("/");
  await page.keyboard.type("texas");
  await page.getByRole("listbox", { name: "Nodes found" }).getByRole("option").first().waitFor();
  await press("ArrowDown", "Enter");
  assert.equal((await view(page)).clicked, TEXAS);
  await press("p", "/");
  await page.keyboard.press("Control+a");
  await page.keyboard.type("0_656_2");
  await page.getByRole("option", { name: /0_656_2/ }).waitFor();
  await press("Enter", "p");
  assert.deepEqual((await view(page)).pinned, [ASKS, TEXAS, "0_656_2"]);
  await page.locator(`g.box[data-key="${TEXAS}"]`).waitFor();
  await page.locator(`g.box[data-key="${TEXAS}"]`).focus();
  await press("Space");
  await page.locator(`g.box[data-key="${ASKS}"]`).focus();
  await press("Space", "g");
  assert.equal((await view(page)).groups.length, 1);
  await press("e");
  await page.keyboard.type("both");
  await press("Enter");
  await until(page, "app.view.groups[0].name === 'both'");
  await press("u");
  assert.equal((await view(page)).groups.length, 0);
  await press("z");
  assert.equal((await view(page)).groups[0].name, "both");
  await page.locator("g.box.group").focus();
  await press("Alt+ArrowRight");
  assert.ok((await view(page)).places["group:both"]);
  await press("w");
  assert.equal((await view(page)).tab, "whatif");
  await press("w", "?");
  await page.getByRole("heading", { name: "Keys" }).waitFor();
  await press("Escape", "1");
  assert.equal(await page.evaluate(() => document.body.dataset.full), "links");
  await press("Escape", "t");
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await press("[");
  await until(page, "app.view.nodeThreshold === 0.75");
  await press("+", "+");
  assert.ok((await page.evaluate(() => /** @type {any} */ (window).circuitscope.plot.zoom.k)) > 2);
  await press("0", "n");
  await page.getByRole("heading", { name: "New trace" }).waitFor();
  await press("Escape", "x");
  await page.getByRole("heading", { name: "Share and export" }).waitFor();
  await press("Escape", "o");
  await page.getByRole("heading", { name: "Graphs" }).waitFor();
  await press("Escape", "s");
  await page.getByText("Saved into the graph’s file.").waitFor();
});

test("paths_search_filter_and_automatic_groups", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas&clickedId=${TEXAS}`);
  await drawn(page);
  await page.getByRole("tab", { name: "Paths" }).click();
  await page.locator(".paths .path").first().waitFor();
  await until(page, "app.trail.length > 1");
  await page.locator(".paths .path .steps").first().click();
  await until(page, "app.trail.length === 1");
  await page.locator(".paths .path").first().getByRole("button", { name: /^Pin/ }).click();
  assert.ok((await view(page)).pinned.includes(TEXAS));
  await page.getByText("Filter", { exact: true }).click();
  await page.getByRole("searchbox", { name: "part of a label" }).fill("capital");
  const shown = await page.evaluate(() => /** @type {any} */ (window).circuitscope.plot.shown.length);
  assert.ok(shown < 24 && shown > 4);
  await page.getByRole("button", { name: "Show all" }).click();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Auto groups" }).first().click();
  await page.getByRole("button", { name: "Take them" }).click();
  await until(page, "app.view.groups.length > 0");
  await page.keyboard.press("h");
  assert.deepEqual((await view(page)).hidden, [TEXAS]);
  await page.keyboard.press("z");
  assert.deepEqual((await view(page)).hidden, []);
});

test("two_graphs_beside_each_other_point_at_each_other", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  trace(dir, OAKLAND, "oakland");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  await page.keyboard.press("c");
  await page.getByRole("combobox", { name: "The other graph" }).selectOption("oakland");
  await page.locator(".compare-row").first().waitFor();
  const at = await where(page, ASKS);
  await page.mouse.move(at.x, at.y);
  await page.waitForFunction(() => !(/** @type {HTMLElement} */ (document.querySelector("#other-panel .tip")).hidden));
  assert.match(await page.locator("#other-panel .tip").innerText(), /asks for capital/);
  await page.getByRole("tab", { name: /^Only there/ }).click();
  assert.match(await page.locator("#compare-panel .list").innerText(), /California|Oakland/);
  await page.waitForTimeout(250);
  await page.reload();
  await drawn(page);
  await page.locator(".compare-row").first().waitFor();
});

test("links_of_other_viewers_show_the_same_here", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  const n = ((0 + 39) * (0 + 39 + 1)) / 2 + 39;
  await page.goto(
    `${server.url}/?slug=dallas&clickedId=${TEXAS}&pinnedIds=${TEXAS}&supernodes=${encodeURIComponent('[["capital","0_90_2","0_656_2"]]')}&clerps=${encodeURIComponent(`[["0_${n}_7","Tejas 100%"]]`)}&pruningThreshold=0.7`,
  );
  await drawn(page);
  await page.getByRole("heading", { name: "Tejas 100%" }).first().waitFor();
  const got = await view(page);
  assert.equal(got.nodeThreshold, 0.7);
  assert.equal(got.groups[0].name, "capital");
});

test("a_trace_explains_what_is_asked", options, async (t) => {
  const dir = folder(t);
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(server.url);
  await drawn(page);
  await page.keyboard.press("n");
  const prompt = page.getByRole("textbox", { name: "Prompt" });
  await prompt.fill(DALLAS);
  await page.locator(".tokens-line .chip").nth(8).waitFor();
  await page.getByRole("combobox", { name: "What to explain" }).selectOption("difference");
  await page.getByRole("textbox", { name: "Token", exact: true }).fill(" Austin");
  await page.getByRole("textbox", { name: "rather than token" }).fill(" Sacramento");
  await page.getByText("Settings").click();
  await page.getByRole("textbox", { name: "Name" }).fill("difference");
  await page.locator("dialog footer").getByRole("button", { name: "Trace", exact: true }).click();
  await page.getByRole("heading", { name: "New trace" }).waitFor({ state: "detached" });
  await until(page, "app.graph.header.targets[0].token_id === null || /−|-/.test(app.graph.header.targets[0].text)");
  assert.match(await page.locator(".overview").innerText(), /Austin.*Sacramento/s);
});

test("a_trace_that_is_cancelled_leaves_nothing", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  await page.keyboard.press("n");
  await page.getByRole("textbox", { name: "Prompt" }).fill(Array.from({ length: 45 }, () => `${DALLAS} Austin.`).join(" "));
  await page.locator(".tokens-line .chip").nth(300).waitFor();
  await page.getByText("Settings").click();
  await page.getByRole("combobox", { name: "Rows" }).selectOption("all");
  await page.locator("dialog footer").getByRole("button", { name: "Trace", exact: true }).click();
  await page.getByText(/rows: /).waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByText("cancelled").waitFor();
  await page.keyboard.press("Escape");
  const left = readdirSync(dir).filter((name) => !name.startsWith("dallas") && name !== "graph-metadata.json");
  assert.deepEqual(left, []);
  assert.equal((await view(page)).slug, "dallas");
});

test("a_graph_of_219724_links_opens_and_answers", options, async (t) => {
  const dir = folder(t);
  const { writeSynthetic } = await import("../synthetic.mjs");
  writeSynthetic(dir, "large", 1099, 219724);
  const server = await serve(t, dir);
  const page = await openPage(t, { width: 1600, height: 900, allow: /features\// });
  await page.goto(`${server.url}/?slug=large`);
  await drawn(page);
  assert.match(await page.locator("#plot .corner").innerText(), /1,099 nodes · 2,000 of 219,724 links/);
  const id = await page.evaluate(() => {
    const { app } = /** @type {any} */ (window).circuitscope;
    return app.graph.idOf([...app.graph.cut.nodes].find((n) => app.graph.kind[n] === 3));
  });
  await page.evaluate((id) => /** @type {any} */ (window).circuitscope.app.choose(id), id);
  await until(page, "app.graph.links.has(app.clicked)");
  await page.locator(".link").nth(5).waitFor();
  const rows = await page.locator(".link").count();
  assert.ok(rows < 80, `only what is in sight is in the document: ${rows}`);
});

test("without_a_model_the_page_says_what_it_lacks", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir, ["--no-model"]);
  const page = await openPage(t, { allow: /nothing-here/ });
  await page.goto(`${server.url}/?slug=dallas&tab=whatif`);
  await drawn(page);
  await page.getByText("This server has no model").waitFor();
  await page.keyboard.press("n");
  await page.getByText("This server has no model, so it shows graphs but traces none.").waitFor();
  await page.keyboard.press("Escape");
  await page.goto(`${server.url}/?slug=nothing-here`);
  await page.getByRole("heading", { name: /There is no graph/ }).waitFor();
});

test("the_model_says_whether_the_graph_is_true", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const server = await serve(t, dir);
  const page = await openPage(t);
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  await page.getByRole("button", { name: "Measure in the model" }).click();
  await page.getByText(/^✓ Edges: [\d,]+ measured in the model/).waitFor({ timeout: 60_000 });
  await page.locator(".scatters canvas").first().waitFor();
});
