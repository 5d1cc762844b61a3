import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, test } from "node:test";
import { DALLAS, OAKLAND, closeBrowser, drawn, folder, openPage, options, serve, trace, until, view } from "./harness.mjs";

after(closeBrowser);

const CORPUS = [
  "<img src=x onerror=window.__pwned=1>",
  "<script>window.__pwned=1</script>",
  '"><svg onload=window.__pwned=1>',
  "javascript:window.__pwned=1",
  "'-window.__pwned=1-'",
  "{{constructor.constructor('window.__pwned=1')()}}",
  '<iframe srcdoc="<script>parent.__pwned=1</script>">',
  "</title><script>window.__pwned=1</script>",
  '<a href="javascript:window.__pwned=1">x</a>',
  "`${window.__pwned=1}`",
  "<style>@import 'http://evil.example/x.css';</style>",
  "\u202e<b onmouseover=window.__pwned=1>\u0000",
  "&lt;img src=x onerror=window.__pwned=1&gt;",
  "<math><mtext></p><img src=x onerror=window.__pwned=1>",
];

/** @param {import("playwright-core").Page} page */
async function unharmed(page, /** @type {string} */ where) {
  assert.equal(await page.evaluate(() => /** @type {any} */ (window).__pwned), undefined, where);
  assert.equal(
    await page.evaluate(
      () => document.querySelectorAll("body img, body iframe, body script, body style, a[href^='javascript']").length,
    ),
    0,
    `${where}: nothing was parsed as HTML`,
  );
}

test("script_in_any_text_of_a_graph_stays_text", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  const path = join(dir, "dallas.json");
  const graph = JSON.parse(readFileSync(path, "utf8"));
  const evil = (/** @type {number} */ i) => CORPUS[i % CORPUS.length];
  graph.metadata.prompt = CORPUS.join(" ");
  graph.metadata.prompt_tokens = graph.metadata.prompt_tokens.map((/** @type {string} */ _, /** @type {number} */ i) =>
    evil(i),
  );
  graph.nodes.forEach((/** @type {any} */ node, /** @type {number} */ i) => {
    node.clerp = node.feature_type === "logit" ? `Output "${evil(i)}" (p=0.9)` : evil(i);
  });
  graph.qParams = {
    pinnedIds: graph.nodes.slice(0, 8).map((/** @type {any} */ n) => n.node_id),
    supernodes: [
      [evil(0), graph.nodes[0].node_id, graph.nodes[1].node_id],
      [evil(1), graph.nodes[2].node_id],
    ],
    clickedId: graph.nodes[0].node_id,
    linkType: "both",
    sg_pos: evil(2),
    clerps: [["0_39", evil(3)]],
  };
  delete graph.metadata.trace_id;
  writeFileSync(join(dir, "evil.json"), JSON.stringify({ ...graph, metadata: { ...graph.metadata, slug: "evil" } }));
  const server = await serve(t, dir);
  const page = await openPage(t, { allow: /features\// });
  await page.goto(`${server.url}/?slug=evil`);
  await drawn(page, "evil");
  await page.locator("g.box").first().waitFor();
  await unharmed(page, "the graph");
  for (const key of ["w", "w", "c", "c", "o"]) {
    await page.keyboard.press(key);
    await page.waitForTimeout(120);
    await unharmed(page, `key ${key}`);
  }
  await page.keyboard.press("Escape");
  const nodes = await page.evaluate(() => {
    const { app } = /** @type {any} */ (window).circuitscope;
    return [...app.graph.cut.nodes].map((n) => app.graph.idOf(n));
  });
  for (const id of nodes.slice(0, 12)) {
    await page.evaluate((id) => {
      const { app } = /** @type {any} */ (window).circuitscope;
      app.choose(id);
      app.setHover(app.graph.numberOf(id));
    }, id);
    await page.waitForTimeout(40);
  }
  await page.locator("#prompt .chip").first().hover();
  await page.keyboard.press("/");
  await page.keyboard.type("pwned");
  await page.getByRole("listbox", { name: "Nodes found" }).waitFor();
  await unharmed(page, "all nodes, hover and search");
  assert.match(await page.title(), /onerror/, "the title is the prompt, as text");
});

test("script_in_a_link_or_a_field_stays_text", options, async (t) => {
  const dir = folder(t);
  trace(dir, DALLAS, "dallas");
  trace(dir, OAKLAND, "oakland");
  const server = await serve(t, dir);
  const page = await openPage(t, { allow: /features\/|graphs\/%3C/ });
  for (const evil of CORPUS) {
    const e = encodeURIComponent;
    await page.goto(
      `${server.url}/?slug=dallas&clickedId=0_39_7&pinnedIds=0_39_7,3_955_8,${e(evil)}&hiddenIds=${e(evil)}&supernodes=${e(JSON.stringify([[evil, "0_39_7", "3_955_8"]]))}&clerps=${e(
        JSON.stringify([
          ["0_39", evil],
          [evil, evil],
        ]),
      )}&note=${e(evil)}&text=${e(evil)}&logitDiff=${e(`${evil}__vs__${evil}`)}&plan=${e(
        JSON.stringify([
          { node: evil, set: 1 },
          { supernode: evil, scale: 2 },
        ]),
      )}&tab=whatif`,
    );
    await drawn(page);
    await page.locator("g.box.group").waitFor();
    await unharmed(page, `a link with ${evil}`);
  }
  await page.goto(`${server.url}/?slug=${encodeURIComponent(CORPUS[0])}`);
  await page.getByRole("heading", { name: /There is no graph/ }).waitFor();
  await unharmed(page, "an unknown slug");
  await page.goto(`${server.url}/?slug=dallas&clickedId=0_39_7&pinnedIds=0_39_7,0_656_2`);
  await drawn(page);
  for (const evil of CORPUS.slice(0, 6)) {
    await page.keyboard.press("e");
    await page.getByRole("textbox", { name: /^Label/ }).fill(evil);
    await page.keyboard.press("Enter");
    await page.waitForTimeout(60);
  }
  await unharmed(page, "labels by hand");
  await page.keyboard.press("s");
  await page.getByText("Saved into the graph’s file.").waitFor();
  await page.goto(`${server.url}/?slug=dallas`);
  await drawn(page);
  await page.locator("g.box").first().waitFor();
  await unharmed(page, "saved labels");
  const svg = await page.evaluate(() => /** @type {any} */ (window).circuitscope.circuit.standalone().text);
  assert.doesNotMatch(svg, /<(img|script|iframe|foreignObject)|\son\w+=/i, "the exported picture");
});

test("the_sources_have_no_way_to_parse_text_as_html", async () => {
  const { readdirSync } = await import("node:fs");
  const web = new URL("../../../web/", import.meta.url);
  for (const name of readdirSync(web).filter((name) => name.endsWith(".js"))) {
    const text = readFileSync(new URL(name, web), "utf8");
    assert.doesNotMatch(
      text,
      /innerHTML|outerHTML|insertAdjacentHTML|document\.write|parseFromString|createContextualFragment|setHTML|\beval\(|new Function|srcdoc/,
      name,
    );
    assert.doesNotMatch(text, /https?:\/\/(?!www\.w3\.org\/2000\/svg)/, `${name} names no other place`);
  }
  const html = readFileSync(new URL("index.html", web), "utf8");
  assert.doesNotMatch(
    html,
    /<script(?![^>]*src=)|\sstyle=|\son\w+=|https?:/,
    "index.html has nothing inline and nothing from elsewhere",
  );
  assert.doesNotMatch(readFileSync(new URL("style.css", web), "utf8"), /@import|https?:/, "style.css");
});

const axePath = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** @param {import("playwright-core").Page} page @param {string} where */
async function accessible(page, where) {
  // The policy forbids foreign scripts in the page; the tests' own goes in through the debugger.
  if (!(await page.evaluate("Boolean(window.axe)"))) await page.evaluate(readFileSync(axePath, "utf8"));
  const result = await page.evaluate(() => /** @type {any} */ (window).axe.run(document, { resultTypes: ["violations"] }));
  const found = result.violations.map(
    (/** @type {any} */ v) =>
      `${v.id}: ${v.help}: ${v.nodes
        .slice(0, 3)
        .map((/** @type {any} */ n) => `${n.target} ${n.any?.[0]?.message ?? n.all?.[0]?.message ?? ""}`)
        .join(" | ")}`,
  );
  assert.deepEqual(found, [], where);
}

for (const dark of [false, true]) {
  test(`those_who_hear_or_cannot_see_well_can_use_it_${dark ? "dark" : "light"}`, options, async (t) => {
    const dir = folder(t);
    trace(dir, DALLAS, "dallas");
    trace(dir, OAKLAND, "oakland");
    const server = await serve(t, dir);
    const page = await openPage(t, { dark });
    await page.goto(`${server.url}/?slug=dallas`);
    await drawn(page);
    await page.waitForTimeout(300);
    await accessible(page, "overview");
    await page.goto(
      `${server.url}/?slug=dallas&clickedId=0_39_7&pinnedIds=0_39_7,3_955_8,0_656_2,0_90_2&supernodes=${encodeURIComponent('[["capital","0_656_2","0_90_2"]]')}`,
    );
    await drawn(page);
    await page.locator(".link").first().waitFor();
    await page.locator("g.box.group").waitFor();
    await page.waitForTimeout(300);
    await accessible(page, "a node");
    await page.getByRole("tab", { name: "Paths" }).click();
    await page.locator(".paths .path").first().waitFor();
    await accessible(page, "paths");
    await page.keyboard.press("w");
    await accessible(page, "what if");
    await page.keyboard.press("c");
    await page.getByRole("combobox", { name: "The other graph" }).selectOption("oakland");
    await page.locator(".compare-row").first().waitFor();
    await accessible(page, "compare");
    for (const [key, name] of [
      ["?", "Keys"],
      ["n", "New trace"],
      ["x", "Share and export"],
      ["o", "Graphs"],
    ]) {
      await page.keyboard.press(key);
      await page.getByRole("heading", { name }).waitFor();
      await page.waitForTimeout(150);
      await accessible(page, `the dialog ${name}`);
      await page.keyboard.press("Escape");
    }
    await page.getByText("Filter", { exact: true }).click();
    await accessible(page, "filter");
    await until(page, "true");
    assert.match(await page.locator("#said").evaluate((e) => e.textContent ?? ""), /feature Texas, layer 0, position 7/);
    assert.ok(await view(page));
  });
}
