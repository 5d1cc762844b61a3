// The page put together: panels, sizes, keys, states.

import { Api, ApiError } from "./api.js";
import { App } from "./app.js";
import { Circuit } from "./circuit.js";
import { Compare } from "./compare.js";
import { exportDialog, graphsDialog, helpDialog, searchBox, traceDialog } from "./dialogs.js";
import { ask, button, byId, fill, h, toast } from "./dom.js";
import { FeaturePanel } from "./feature.js";
import { LinkGraph } from "./linkgraph.js";
import { NodePanel } from "./node.js";
import { clamp, num, percent, quoted, visible } from "./scale.js";
import { NO_FILTER } from "./store.js";
import { WhatIf } from "./whatif.js";

const app = new App(new Api());
const plot = new LinkGraph(byId("plot"), app, {
  graph: () => app.graph,
  label: "Link graph: arrow keys walk from node to node, Enter chooses",
  mark: (n) => (app.view.tab === "compare" && app.other ? compare.mark(app.graph, n) : null),
});
const circuit = new Circuit(byId("circuit-panel"), app);
new NodePanel(byId("node-panel"), app);
const feature = new FeaturePanel(byId("feature-panel"), app);
const whatif = new WhatIf(byId("whatif-panel"), app);
const compare = new Compare(byId("compare-panel"), byId("other-panel"), app);

// -- the bar over the link graph ------------------------------------------------------------------------------------------

const sliders = /** @type {const} */ ([
  ["node", "Nodes that carry this share of the influence"],
  ["edge", "Links that carry this share"],
]).map(([name, title]) => {
  const input = h("input", {
    type: "range",
    min: name === "node" ? "0.1" : "0.3",
    max: "1",
    step: "0.01",
    "aria-label": `${name} threshold`,
    title,
  });
  const value = h("output", null);
  input.addEventListener("input", () => {
    const x = Number(input.value);
    value.textContent = x.toFixed(2);
    app.setThresholds(
      name === "node" ? x : (app.view.nodeThreshold ?? Number(sliders[0].input.value)),
      name === "edge" ? x : (app.view.edgeThreshold ?? Number(sliders[1].input.value)),
    );
  });
  return { name, input, value, element: h("label", { class: "threshold", title }, name, input, value) };
});
const filterBody = h("div", { class: "popover" });
const filterButton = h("summary", { title: "Show less" }, "Filter");
const filterBox = h("details", { class: "filter" }, filterButton, filterBody);
const bar = byId("links-bar");
fill(bar, h("h2", null, "Links"), ...sliders.map((slider) => slider.element), h("span", { class: "grow" }), filterBox);
const search = searchBox(app, bar);

function showSliders() {
  const info = app.graph?.cut.info ?? {};
  for (const { name, input, value } of sliders) {
    const wanted =
      name === "node" ? (app.view.nodeThreshold ?? info.node_threshold) : (app.view.edgeThreshold ?? info.edge_threshold);
    const known = wanted !== null && wanted !== undefined;
    input.disabled = !app.graph;
    if (document.activeElement !== input) input.value = String(known ? wanted : 1);
    value.textContent = known ? Number(wanted).toFixed(2) : "file";
  }
}

function showFilter() {
  const graph = app.graph;
  const { filter } = app.view;
  const set = (/** @type {Partial<import("./store.js").Filter>} */ patch) =>
    app.store.set((view) => ({ filter: { ...view.filter, ...patch } }));
  const kind = (/** @type {string} */ name) =>
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: !filter.kinds.includes(name),
        onchange: (/** @type {Event} */ e) =>
          set({
            kinds: /** @type {HTMLInputElement} */ (e.target).checked
              ? filter.kinds.filter((k) => k !== name)
              : [...filter.kinds, name],
          }),
      }),
      `${name}s`,
    );
  const range = (/** @type {string} */ name, /** @type {"layers"|"positions"} */ key, /** @type {number} */ last) => {
    const [a, b] = filter[key] ?? [0, last];
    const low = h("input", {
      type: "number",
      min: "0",
      max: String(last),
      value: String(a),
      "aria-label": `first of ${name}`,
    });
    const high = h("input", {
      type: "number",
      min: "0",
      max: String(last),
      value: String(b),
      "aria-label": `last of ${name}`,
    });
    const take = () => {
      const x = clamp(Math.round(Number(low.value)) || 0, 0, last),
        y = clamp(Math.round(Number(high.value)), x, last);
      set({ [key]: x === 0 && y === last ? null : [x, y] });
    };
    low.addEventListener("change", take);
    high.addEventListener("change", take);
    return h("label", null, name, h("span", { class: "range" }, low, "–", high));
  };
  const text = h("input", {
    type: "search",
    value: filter.text,
    placeholder: "part of a label",
    "aria-label": "part of a label",
    oninput: (/** @type {Event} */ e) => set({ text: /** @type {HTMLInputElement} */ (e.target).value }),
  });
  const share = h("input", {
    type: "range",
    min: "0",
    max: "0.2",
    step: "0.002",
    value: String(filter.minShare),
    "aria-label": "Minimum share",
    oninput: (/** @type {Event} */ e) => {
      set({ minShare: Number(/** @type {HTMLInputElement} */ (e.target).value) });
      least.textContent = percent(app.view.filter.minShare);
    },
  });
  const least = h("output", null, percent(filter.minShare));
  fill(
    filterBody,
    h("div", { class: "row" }, kind("feature"), kind("error"), kind("token"), kind("target"), kind("context")),
    graph && range("layers", "layers", graph.nLayers - 1),
    graph && range("positions", "positions", graph.tokens.length - 1),
    h("label", null, "label", text),
    h("label", null, "share at least", share, least),
    h(
      "div",
      { class: "row" },
      app.view.hidden.length > 0 && button(`Show ${app.view.hidden.length} hidden`, () => app.store.set({ hidden: [] })),
      h("span", { class: "grow" }),
      button("Show all", () => {
        app.store.set({ filter: NO_FILTER });
        showFilter();
      }),
    ),
  );
}
filterBox.addEventListener("toggle", () => {
  if (filterBox.open) showFilter();
});
document.addEventListener("pointerdown", (event) => {
  if (filterBox.open && !filterBox.contains(/** @type {Node} */ (event.target))) filterBox.open = false;
});

// -- the bar at the top ---------------------------------------------------------------------------------------------------

const saveButton = button("Save", () => app.save(), { title: "Save pins, groups, labels into the graph’s file (S)" });
const themeButton = button("◐", () => theme(), {
  class: "plain",
  "aria-label": "Light or dark",
  title: "Light or dark (T)",
});
fill(
  byId("actions"),
  button("New trace", () => traceDialog(app), { title: "N" }),
  saveButton,
  button("Share", () => exportDialog(app, circuit), { title: "Share and export (X)" }),
  themeButton,
  button("?", () => helpDialog(app), { class: "plain", "aria-label": "Help: all keys", title: "Help (?)" }),
);
byId("graphs").addEventListener("click", () => graphsDialog(app));

function showTop() {
  const graph = app.graph;
  document.title = graph ? `${visible(graph.header.prompt)} – circuitscope` : "circuitscope";
  const tokens = graph ? [...graph.cut.nodes].filter((n) => graph.kind[n] === 2) : [];
  fill(
    byId("prompt"),
    graph
      ? graph.tokens.map((token, pos) => {
          const n = tokens.find((m) => graph.pos[m] === pos) ?? -1;
          return h(
            "button",
            {
              type: "button",
              class: "chip",
              title: `position ${pos}`,
              onpointerenter: () => app.setHover(n),
              onpointerleave: () => app.setHover(-1),
              onfocus: () => app.setHover(n),
              onblur: () => app.setHover(-1),
              onclick: (/** @type {MouseEvent} */ e) => {
                if (n >= 0) app.click(n, e);
              },
            },
            visible(token),
          );
        })
      : null,
  );
  const scores = graph?.header.scores;
  const proof = graph?.header.proof;
  const score = (/** @type {string} */ name, /** @type {number|null} */ x, /** @type {string} */ title) =>
    h("span", { title }, `${name} `, h("b", null, x === null || x === undefined ? "–" : x.toFixed(3)));
  fill(
    byId("scores"),
    graph && [
      proof &&
        h(
          "span",
          { title: "Every row adds up to what it explains; the worst is off by this much" },
          "proof ",
          h(
            "b",
            { class: proof.row_identity_error <= 1e-4 ? "good" : "bad" },
            `${proof.row_identity_error <= 1e-4 ? "✓" : "✗"} ${num(proof.row_identity_error, 1)}`,
          ),
        ),
      score(
        "repl",
        scores?.replacement,
        "Replacement score of the whole graph: the part of the influence that comes from tokens, not errors",
      ),
      score("compl", scores?.completeness, "Completeness of the whole graph: the part of all inputs that are explained"),
    ],
  );
}

function showSave() {
  const dirty = app.dirty;
  saveButton.disabled = !app.graph || !dirty;
  saveButton.classList.toggle("dirty", dirty);
  saveButton.textContent = dirty ? "Save" : "Saved";
}

// -- which panels are shown -----------------------------------------------------------------------------------------------

const VIEWS = /** @type {const} */ ([
  ["node", "Node and feature"],
  ["whatif", "What if"],
  ["compare", "Compare"],
]);
function showViews() {
  const { tab } = app.view;
  const focused = byId("views").contains(document.activeElement);
  fill(
    byId("views"),
    VIEWS.map(([name, text]) =>
      h(
        "button",
        {
          type: "button",
          id: `view-${name}`,
          role: "tab",
          "aria-selected": String(tab === name),
          tabindex: tab === name ? "0" : "-1",
          onclick: () => app.store.set({ tab: name }),
        },
        text,
      ),
    ),
  );
  if (focused) byId(`view-${tab}`).focus();
  byId("explore").hidden = tab !== "node";
  byId("whatif-panel").hidden = tab !== "whatif";
  byId("compare-panel").hidden = tab !== "compare";
  const two = tab === "compare" && Boolean(app.other);
  byId("other-panel").hidden = !two;
  byId("circuit-panel").hidden = two;
}
byId("views").addEventListener("keydown", (event) => {
  const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
  if (!by) return;
  const names = VIEWS.map(([name]) => /** @type {string} */ (name));
  app.store.set({ tab: names[(names.indexOf(app.view.tab) + by + names.length) % names.length] });
  event.preventDefault();
  event.stopPropagation();
});

const FULL = ["links", "circuit", "node", "feature", "whatif"];
/** @param {string} name */
function full(name) {
  const now = document.body.dataset.full === name ? "" : name;
  if (now) document.body.dataset.full = now;
  else delete document.body.dataset.full;
  if (now === "node" || now === "feature") app.store.set({ tab: "node" });
  if (now === "whatif") app.store.set({ tab: "whatif" });
}

function showBlank() {
  const blank = byId("blank");
  const { graph, trouble, loading } = app;
  clearTimeout(waiting);
  if (graph || (feature.solo && !loading && !trouble)) {
    blank.hidden = true;
    document.body.classList.toggle("bare", !graph);
    return;
  }
  if (loading) {
    // Fast answers should not flash.
    waiting = window.setTimeout(() => {
      if (!app.loading) return;
      fill(blank, h("p", { class: "muted", role: "status" }, "Opening…"));
      blank.hidden = false;
    }, 200);
    return;
  }
  document.body.classList.add("bare");
  blank.hidden = false;
  if (!app.api.online && !app.health) {
    fill(
      blank,
      h(
        "div",
        { class: "card" },
        h("h2", null, "The server does not answer"),
        h("p", null, "Start it with ", h("code", null, "circuitscope serve"), "; this page goes on by itself."),
      ),
    );
    return;
  }
  const model = app.canRun;
  // A server that has just started may be tracing its first graph.
  if (model && app.graphs.length === 0 && !trouble) {
    waiting = window.setTimeout(() => {
      if (app.graph || app.loading || document.querySelector("dialog[open]")) return;
      app
        .listGraphs()
        .then((graphs) => {
          if (graphs.length > 0) begin();
        })
        .catch(() => {});
    }, 700);
  }
  const prompt = app.health?.demo_prompt;
  fill(
    blank,
    h(
      "div",
      { class: "card" },
      h("h2", null, trouble ? trouble.title : "No graph yet"),
      trouble?.text && h("p", { class: "bad" }, trouble.text),
      h(
        "p",
        null,
        model
          ? "Trace a prompt: which tokens and features made the model say that?"
          : app.graphs.length
            ? "Choose one of the graphs of this folder."
            : "This server has neither graphs nor a model. Give it a folder of graphs, or start it with nothing at all for the built-in model.",
      ),
      h(
        "div",
        { class: "row" },
        app.graphs.length > 0 && button("Open a graph", () => graphsDialog(app), { class: "primary" }),
        model &&
          prompt &&
          button(`Trace ${quoted(prompt)}`, () => traceDialog(app, prompt), {
            class: app.graphs.length > 0 ? "" : "primary",
          }),
        model && button("Another prompt…", () => traceDialog(app, " ")),
      ),
    ),
  );
}
let waiting = 0;

// -- sizes ----------------------------------------------------------------------------------------------------------------

/** @type {Record<string, number>} */
const sizes = { left: 58, links: 52, node: 52 };
try {
  const kept = JSON.parse(localStorage.getItem("sizes") ?? "{}");
  for (const key of Object.keys(sizes)) if (Number.isFinite(kept[key])) sizes[key] = clamp(kept[key], 15, 85);
} catch {
  // Without storage sizes are not remembered.
}
const applySizes = () => {
  for (const [key, value] of Object.entries(sizes)) document.documentElement.style.setProperty(`--size-${key}`, `${value}%`);
  for (const splitter of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".splitter")))
    splitter.setAttribute("aria-valuenow", String(Math.round(sizes[splitter.dataset.size ?? ""])));
};
const keep = (/** @type {string} */ key, /** @type {string} */ value) => {
  try {
    localStorage.setItem(key, value);
  } catch {
    /* not remembered */
  }
};
for (const splitter of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".splitter"))) {
  const key = splitter.dataset.size ?? "";
  const vertical = splitter.classList.contains("column-wise");
  splitter.addEventListener("pointerdown", (event) => {
    splitter.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  splitter.addEventListener("pointermove", (event) => {
    if (!splitter.hasPointerCapture(event.pointerId)) return;
    const rect = /** @type {HTMLElement} */ (splitter.parentElement).getBoundingClientRect();
    sizes[key] = clamp(
      100 * (vertical ? (event.clientX - rect.left) / rect.width : (event.clientY - rect.top) / rect.height),
      15,
      85,
    );
    applySizes();
  });
  splitter.addEventListener("pointerup", () => keep("sizes", JSON.stringify(sizes)));
  splitter.addEventListener("keydown", (event) => {
    const by = /** @type {Record<string, number>} */ (
      vertical ? { ArrowLeft: -2, ArrowRight: 2 } : { ArrowUp: -2, ArrowDown: 2 }
    )[event.key];
    if (!by) return;
    sizes[key] = clamp(sizes[key] + by, 15, 85);
    applySizes();
    keep("sizes", JSON.stringify(sizes));
    event.preventDefault();
    event.stopPropagation();
  });
}
applySizes();

/** @param {string} [to] */
function theme(to) {
  const dark = to ?? (isDark() ? "light" : "dark");
  document.documentElement.dataset.theme = dark;
  keep("theme", dark);
  redraw();
}
const isDark = () =>
  (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) ===
  "dark";
function redraw() {
  for (const drawing of [plot, compare.drawing]) {
    drawing.colors();
    drawing.drawAll();
  }
}
try {
  const kept = localStorage.getItem("theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // As the system has it.
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// -- what changes what ----------------------------------------------------------------------------------------------------

app.on("graph", () => {
  plot.zoom = { k: 1, x: 0, y: 0 };
  plot.update();
  showTop();
  showSliders();
  showSave();
  showViews();
  showBlank();
});
app.on("loading", () => showBlank());
app.on("graphs", () => {
  if (!app.graph) showBlank();
});
app.on("health", () => {
  if (!app.graph) showBlank();
});
app.on("cut", () => {
  plot.update();
  showSliders();
  showTop();
});
app.on("compared", () => plot.drawAll());
app.on("other", () => {
  showViews();
  plot.update();
});
app.on("view", (now, before) => {
  if (
    now.pinned !== before.pinned ||
    now.hidden !== before.hidden ||
    now.filter !== before.filter ||
    now.labels !== before.labels
  )
    plot.update();
  else if (now.clicked !== before.clicked) {
    if (app.graph && app.clicked >= 0 && (!app.graph.cut.has[app.clicked] || app.filtered)) plot.update();
    else plot.drawOverSoon();
    plot.reveal(app.clicked);
    say();
  }
  if (now.nodeThreshold !== before.nodeThreshold || now.edgeThreshold !== before.edgeThreshold) showSliders();
  if (now.filter !== before.filter || now.hidden !== before.hidden)
    filterButton.textContent = app.filtered || now.hidden.length ? "Filter ●" : "Filter";
  if (now.tab !== before.tab || now.other !== before.other) {
    showViews();
    plot.drawAll();
  }
  showSave();
});
app.on("hover", (other) => {
  if (!other) plot.drawOverSoon();
});
app.on("links", () => {
  plot.drawOverSoon();
  say();
});
app.on("trail", () => plot.drawOverSoon());
app.on("selection", () => plot.drawOverSoon());

/** For those who hear the page. */
function say() {
  const graph = app.graph;
  const n = app.clicked;
  if (!graph || n < 0) {
    byId("said").textContent = "";
    return;
  }
  const links = graph.links.get(n);
  byId("said").textContent =
    `${graph.kindOf(n)} ${graph.shown(n)}, ${graph.kind[n] < 2 ? `layer ${graph.layer[n]}, ` : ""}position ${graph.pos[n]}, share ${percent(graph.cut.share[n])}${links ? `, ${links.inputs.total} inputs, ${links.outputs.total} outputs` : ""}${app.view.pinned.includes(graph.idOf(n)) ? ", pinned" : ""}`;
}

// -- a server that goes and comes back ------------------------------------------------------------------------------------

let retry = 0;
app.api.ononline = (online) => {
  const banner = byId("banner");
  if (online) {
    banner.hidden = true;
    clearInterval(retry);
    toast("The server is back.");
    again();
    return;
  }
  fill(
    banner,
    h("b", null, "The server does not answer."),
    " What you made is kept on this page; it goes on when ",
    h("code", null, "circuitscope serve"),
    " runs again.",
  );
  banner.hidden = false;
  clearInterval(retry);
  retry = window.setInterval(() => {
    app.api.health().catch(() => {});
  }, 2000);
};

/** After a new start of the server: what it can, and whether the graph is the same. */
async function again() {
  try {
    app.health = await app.api.health();
    app.tell("health");
    await app.listGraphs();
    if (!app.graph) {
      await begin();
      return;
    }
    const { etag } = await app.api.view(app.graph.id);
    if (!app.saved || etag !== app.etag) app.etag = app.etag || etag;
    const header = await app.api.graph(app.graph.id, app.at, false);
    if (header.etag !== app.graph.header.etag) await app.open(app.graph.id, { ...app.view });
    else {
      if (app.clicked >= 0) app.wantLinks(app.clicked);
      circuit.asked = "";
      circuit.update();
    }
  } catch (error) {
    if (error instanceof ApiError && error.status === 404 && app.graph)
      toast("The server no longer has this graph (it was never written). The address keeps what you pinned.", {
        kind: "error",
      });
    else app.complain(error);
  }
}

async function begin() {
  const link = app.readUrl();
  if (app.extra.feature && !link.slug) {
    feature.open(app.extra.feature);
    full("feature");
    showBlank();
    return;
  }
  const slug = link.slug || app.graphs.find((g) => !g.problem)?.id;
  if (!slug) {
    app.tell("graph");
    return;
  }
  await app.open(slug, link);
  if (app.extra.logitDiff && app.canRun && app.graph) {
    const [a, b] = app.extra.logitDiff;
    toast(`This link compares ${quoted(a)} with ${quoted(b)}.`, {
      action: ["Trace the difference", () => traceDialog(app, app.graph?.header.prompt, { difference: [a, b] })],
    });
  }
}

async function start() {
  const token = /^#token=(.+)$/.exec(location.hash);
  try {
    if (token) {
      history.replaceState(null, "", location.pathname + location.search);
      await app.api.session(decodeURIComponent(token[1]));
    }
    [app.health] = await Promise.all([app.api.health(), app.listGraphs()]);
    app.tell("health");
    await begin();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      const given = await ask("This server wants its token", "", "Token");
      if (given) {
        await app.api.session(given).catch(() => {});
        await start();
        return;
      }
    }
    app.complain(error);
    showBlank();
  }
}
window.addEventListener("popstate", () => {
  const link = app.readUrl();
  if (link.slug && link.slug !== app.view.slug) app.open(link.slug, link);
});
window.addEventListener("beforeunload", () => app.writeUrlNow());

// -- keys -----------------------------------------------------------------------------------------------------------------

const TYPING = "input:not([type=range]):not([type=checkbox]), textarea, select, [contenteditable]";
/** @type {Record<string, () => void>} */
const KEYS = {
  "/": () => search.focus(),
  "?": () => helpDialog(app),
  n: () => traceDialog(app),
  o: () => graphsDialog(app),
  s: () => {
    app.save();
  },
  x: () => exportDialog(app, circuit),
  t: () => theme(),
  z: () => app.undo(),
  Z: () => app.redo(),
  a: () => {
    circuit.autoGroups();
  },
  u: () => circuit.ungroup(),
  "+": () => plot.zoomBy(1.5),
  "=": () => plot.zoomBy(1.5),
  "-": () => plot.zoomBy(1 / 1.5),
  0: () => plot.resetZoom(),
  p: () => {
    if (app.view.clicked) app.togglePin(app.view.clicked);
    else if (app.hover >= 0 && app.graph) app.togglePin(app.graph.idOf(app.hover));
  },
  h: () => {
    if (app.view.clicked) app.hide(app.view.clicked);
  },
  e: () => {
    const [key] = app.selection;
    if (app.selection.size === 1 && key.startsWith("group:")) circuit.rename();
    else app.editLabel(app.clicked);
  },
  w: () => app.store.set((view) => ({ tab: view.tab === "whatif" ? "node" : "whatif" })),
  c: () => app.store.set((view) => ({ tab: view.tab === "compare" ? "node" : "compare" })),
  r: () => {
    app.store.set({ tab: "whatif" });
    whatif.run();
  },
  "[": () => step(-0.05),
  "]": () => step(0.05),
  Delete: () => circuit.unpin(),
  Escape: () => {
    if (filterBox.open) filterBox.open = false;
    else if (app.gathering) {
      app.gathering = null;
      app.tell("selection");
    } else if (document.body.dataset.full) full(document.body.dataset.full);
    else if (app.trail.length) app.setTrail([]);
    else if (app.selection.size) app.select([]);
    else app.choose(null);
  },
};
FULL.forEach((name, i) => {
  KEYS[String(i + 1)] = () => full(name);
});

/** @param {number} by */
function step(by) {
  const now = Number(sliders[0].input.value);
  app.setThresholds(Number(clamp(now + by, 0.1, 1).toFixed(2)), app.view.edgeThreshold ?? Number(sliders[1].input.value));
}

document.addEventListener("keydown", (event) => {
  const target = /** @type {Element} */ (event.target);
  const dialogs = /** @type {NodeListOf<HTMLDialogElement>} */ (document.querySelectorAll("dialog[open]"));
  if (dialogs.length > 0) {
    // Where the focus has left the dialog, its own handler does not hear of it.
    if (event.key === "Escape") dialogs[dialogs.length - 1].close();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && !event.altKey) {
    const key = event.key.toLowerCase();
    if (key === "s") {
      event.preventDefault();
      app.save();
    }
    if (key === "z" && !target.matches(TYPING)) {
      event.preventDefault();
      if (event.shiftKey) app.redo();
      else app.undo();
    }
    return;
  }
  if (event.altKey || target.matches(TYPING)) {
    if (event.key === "Escape") /** @type {HTMLElement} */ (target).blur();
    return;
  }
  if (event.key === "Shift") {
    app.frozen = true;
    return;
  }
  if (event.key === "g") {
    if (!event.repeat && !app.gathering) {
      app.gathering = new Set();
      document.body.classList.add("gathering");
    }
    return;
  }
  if (
    event.key.startsWith("Arrow") &&
    !target.matches("input, [role=tab], [role=separator], .list") &&
    (target === plot.box || target === document.body || plot.box.contains(target))
  ) {
    const next = plot.neighbor(event.key, app.clicked);
    if (next >= 0 && app.graph) app.choose(app.graph.idOf(next));
    event.preventDefault();
    return;
  }
  const work = KEYS[event.key];
  if (!work || ((event.key === "Enter" || event.key === " ") && target.matches("button, a, summary"))) return;
  event.preventDefault();
  work();
});
document.addEventListener("keyup", (event) => {
  if (event.key === "Shift") app.frozen = false;
  if (event.key === "g" && app.gathering) {
    const gathered = [...app.gathering];
    app.gathering = null;
    document.body.classList.remove("gathering");
    app.group(gathered.length > 0 ? gathered : app.members(app.selection));
    app.tell("selection");
  }
});
window.addEventListener("blur", () => {
  app.frozen = false;
  app.gathering = null;
  document.body.classList.remove("gathering");
});
plot.box.addEventListener("reveal", (event) => plot.reveal(/** @type {CustomEvent} */ (event).detail));

showSliders();
showViews();
showSave();
start();

// For the console, and for tests that must know where a node is drawn.
Object.assign(window, { circuitscope: { app, plot, circuit } });
