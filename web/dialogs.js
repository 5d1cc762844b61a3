// Windows over the page: a new trace, the list of graphs, groups that are offered, a conflict of two who saved, help.

import { ApiError, isAbort } from "./api.js";
import { button, copy, debounce, dialog, fill, h, toast } from "./dom.js";
import { count, percent, probability, quoted, shorten, visible } from "./scale.js";
import { makeGroup } from "./store.js";

/** @typedef {import("./app.js").App} App */

/**
 * @param {App} app @param {string} [prompt]
 * @param {{difference?: [string, string], feature?: string}} [explain] what is to be explained, if not the likeliest tokens
 */
export function traceDialog(app, prompt = "", { difference, feature: asked } = {}) {
  if (!app.canRun) {
    dialog(
      "New trace",
      h(
        "p",
        null,
        "This server has no model, so it shows graphs but traces none. Start it with --model and --transcoders, or with nothing at all for the built-in model.",
      ),
      [],
      "small",
    );
    return;
  }
  const input = h(
    "textarea",
    {
      rows: "3",
      "aria-label": "Prompt",
      spellcheck: "false",
      placeholder: app.health?.demo_prompt ?? "The capital of the state containing Dallas is",
    },
    prompt || app.graph?.header.prompt || app.health?.demo_prompt || "",
  );
  const tokens = h("div", {
    class: "chips tokens-line",
    "aria-label": "Tokens; choose the position to explain",
    role: "group",
  });
  const hint = h("p", { class: "muted small", role: "status" });
  const top = h("div", { class: "top-tokens" });
  let position = /** @type {number|null} */ (null);
  /** @type {Set<string>} */
  const chosen = new Set();
  const kind = h(
    "select",
    { "aria-label": "What to explain" },
    [
      ["likely", "the likeliest tokens"],
      ["tokens", "tokens chosen below"],
      ["difference", "one token rather than another"],
      ["feature", "a feature"],
    ].map(([value, text]) => h("option", { value }, text)),
  );
  const plus = h("input", { type: "text", "aria-label": "Token", placeholder: " Austin", value: difference?.[0] ?? "" });
  const minus = h("input", {
    type: "text",
    "aria-label": "rather than token",
    placeholder: " Sacramento",
    value: difference?.[1] ?? "",
  });
  const feature = h("input", {
    type: "text",
    "aria-label": "Feature: layer_index_position",
    placeholder: "0_39_7",
    value: asked ?? (app.graph && app.clicked >= 0 && app.graph.kind[app.clicked] === 0 ? (app.view.clicked ?? "") : ""),
  });
  const extra = h("span", { class: "row" });
  if (difference) kind.value = "difference";
  if (asked) kind.value = "feature";
  const rows = h(
    "select",
    { "aria-label": "Rows" },
    [
      ["auto", "as many as fit"],
      ["all", "all features"],
      ["500", "500 best"],
      ["1500", "1,500 best"],
      ["4000", "4,000 best"],
    ].map(([value, text]) => h("option", { value }, text)),
  );
  const node = h("input", {
    type: "number",
    min: "0.1",
    max: "1",
    step: "0.05",
    value: "0.8",
    "aria-label": "Node threshold",
  });
  const edge = h("input", {
    type: "number",
    min: "0.1",
    max: "1",
    step: "0.01",
    value: "0.98",
    "aria-label": "Edge threshold",
  });
  const slug = h("input", {
    type: "text",
    placeholder: "from the prompt",
    "aria-label": "Name",
    maxlength: "80",
    spellcheck: "false",
  });
  const replace = h("input", { type: "checkbox" });
  const bar = h("progress", { max: "1", hidden: true, "aria-label": "Progress" });
  const phase = h("span", { class: "muted", role: "status" });
  const go = button("Trace", () => start(), { class: "primary" });
  const cancel = button("Cancel", () => {
    if (control) control.abort();
    else box.close();
  });
  /** @type {AbortController|null} */
  let control = null;
  /** @type {AbortController|null} */
  let looking = null;
  let known = /** @type {any[]} */ ([]);

  const showExtra = () => {
    fill(extra, kind.value === "difference" ? [plus, " − ", minus] : kind.value === "feature" ? feature : null);
    top.hidden = kind.value === "feature";
  };
  kind.addEventListener("change", () => {
    showExtra();
    showTop();
  });
  let likely = /** @type {any[]} */ ([]);
  const showTop = () => {
    fill(
      top,
      likely.length === 0
        ? null
        : h(
            "div",
            { class: "targets" },
            likely.map((t) =>
              h(
                "label",
                { class: "bar-row" },
                kind.value === "tokens" &&
                  h("input", {
                    type: "checkbox",
                    checked: chosen.has(t.text),
                    onchange: (/** @type {Event} */ e) => {
                      if (/** @type {HTMLInputElement} */ (e.target).checked) chosen.add(t.text);
                      else chosen.delete(t.text);
                    },
                  }),
                h(
                  "span",
                  { class: "bar-cell", "aria-hidden": "true" },
                  h("i", { style: { width: `${100 * t.probability}%` } }),
                ),
                h("span", { class: "figure" }, probability(t.probability)),
                h("span", { class: "label" }, visible(t.text)),
                kind.value === "difference" &&
                  button(
                    "+",
                    () => {
                      plus.value = t.text;
                    },
                    { class: "plain", "aria-label": `Explain ${visible(t.text)}` },
                  ),
                kind.value === "difference" &&
                  button(
                    "−",
                    () => {
                      minus.value = t.text;
                    },
                    { class: "plain", "aria-label": `rather than ${visible(t.text)}` },
                  ),
              ),
            ),
          ),
    );
  };
  const showTokens = () => {
    fill(
      tokens,
      known.map((t, i) =>
        h(
          "button",
          {
            type: "button",
            class: `chip${i === (position ?? known.length - 1) ? " on" : ""}`,
            "aria-pressed": String(i === (position ?? known.length - 1)),
            title: `token ${t.id}: explain what comes after it`,
            onclick: () => {
              position = i === known.length - 1 ? null : i;
              showTokens();
              look();
            },
          },
          visible(t.text),
        ),
      ),
    );
  };
  const tokenize = async () => {
    looking?.abort();
    looking = new AbortController();
    const { signal } = looking;
    if (!input.value) {
      known = [];
      likely = [];
      showTokens();
      showTop();
      hint.textContent = "Type a prompt: what comes next is explained.";
      go.disabled = true;
      return;
    }
    try {
      const answer = await app.api.tokenize(input.value, signal);
      known = answer.tokens;
      if (position !== null && position >= known.length) position = null;
      const over = answer.n_pos > answer.limit;
      go.disabled = over;
      hint.textContent = over
        ? `${answer.n_pos} tokens; this server takes ${answer.limit} at most.`
        : /\s$/.test(input.value)
          ? "The prompt ends in a space: tokens usually bring their own, so the answer may surprise."
          : `${answer.n_pos} tokens. Choose one to explain what comes after it.`;
      showTokens();
      await look();
    } catch (error) {
      if (!isAbort(error)) hint.textContent = error instanceof Error ? error.message : "";
    }
  };
  const look = async () => {
    try {
      const answer = await app.api.topTokens(input.value, position, looking?.signal);
      likely = answer.tokens;
      showTop();
    } catch (error) {
      if (!isAbort(error)) hint.textContent = error instanceof Error ? error.message : "";
    }
  };
  input.addEventListener("input", debounce(250, tokenize));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
  });

  const targets = () => {
    if (kind.value === "tokens") return [...chosen].map((token) => ({ token }));
    if (kind.value === "difference") return [{ difference: [plus.value, minus.value] }];
    if (kind.value === "feature") return [{ feature: feature.value.trim() }];
    return [];
  };
  const start = async () => {
    if (control || go.disabled) return;
    if (kind.value === "tokens" && chosen.size === 0) {
      hint.textContent = "Choose one token or more below.";
      return;
    }
    control = new AbortController();
    go.disabled = true;
    bar.hidden = false;
    bar.removeAttribute("value");
    phase.textContent = "waiting…";
    const request = {
      kind: "trace",
      prompt: input.value,
      targets: targets(),
      ...(position !== null && kind.value !== "feature" ? { position } : {}),
      rows: /^\d+$/.test(rows.value) ? Number(rows.value) : rows.value,
      node_threshold: Number(node.value),
      edge_threshold: Number(edge.value),
      ...(slug.value.trim() ? { slug: slug.value.trim() } : {}),
      replace: replace.checked,
    };
    try {
      const result = await app.api.run(request, {
        signal: control.signal,
        onevent: (name, data) => {
          if (name === "queued" && data.ahead > 0)
            phase.textContent = `waiting for ${data.ahead} other job${data.ahead > 1 ? "s" : ""}…`;
          if (name === "started") phase.textContent = "started";
          if (name === "progress") {
            phase.textContent = data.total ? `${data.phase}: ${count(data.done)} of ${count(data.total)}` : data.phase;
            if (data.total) bar.value = data.done / data.total;
          }
        },
      });
      control = null;
      box.close();
      await app.listGraphs().catch(() => {});
      history.pushState(null, "", location.pathname);
      await app.open(result.graph);
    } catch (error) {
      control = null;
      go.disabled = false;
      bar.hidden = true;
      if (isAbort(error)) phase.textContent = "cancelled";
      else {
        phase.textContent = "";
        hint.textContent = `${error instanceof Error ? error.message : error}${error instanceof ApiError && error.hint ? ` – ${error.hint}` : ""}`;
        hint.classList.add("bad");
      }
    }
  };
  const box = dialog(
    "New trace",
    [
      h("label", { class: "field-label" }, "Prompt", input),
      tokens,
      hint,
      h("div", { class: "row" }, h("label", null, "Explain ", kind), extra),
      top,
      h(
        "details",
        null,
        h("summary", null, "Settings"),
        h(
          "div",
          { class: "grid" },
          h("label", null, "rows", rows),
          h("label", null, "node threshold", node),
          h("label", null, "edge threshold", edge),
          h("label", null, "name", slug),
          h("label", { class: "check" }, replace, "replace a graph of this name"),
        ),
      ),
    ],
    [phase, bar, h("span", { class: "grow" }), cancel, go],
    "wide",
  );
  box.addEventListener("close", () => {
    control?.abort();
    looking?.abort();
  });
  showExtra();
  input.focus();
  input.select();
  tokenize();
}

/** All graphs, to choose one. @param {App} app */
export function graphsDialog(app) {
  const filter = h("input", { type: "search", placeholder: "Find a prompt", "aria-label": "Find a prompt" });
  const list = h("div", { class: "graph-list", role: "list" });
  const show = () => {
    const words = filter.value.toLowerCase();
    const found = app.graphs.filter((g) => `${g.prompt} ${g.id}`.toLowerCase().includes(words));
    fill(
      list,
      found.length === 0
        ? h(
            "p",
            { class: "muted" },
            app.graphs.length ? "No graph has this in its prompt." : "The folder has no graphs yet.",
          )
        : found.slice(0, 300).map((g) =>
            h(
              "div",
              { role: "listitem" },
              h(
                "button",
                {
                  type: "button",
                  class: `graph${g.id === app.graph?.id ? " on" : ""}`,
                  disabled: Boolean(g.problem),
                  onclick: () => {
                    box.close();
                    history.pushState(null, "", location.pathname);
                    app.open(g.id);
                  },
                },
                h("b", null, shorten(visible(g.prompt || g.id), 120)),
                h(
                  "span",
                  { class: "muted" },
                  g.problem
                    ? `cannot be opened: ${g.problem}`
                    : [
                        g.id,
                        g.raw ? "raw" : "JSON alone",
                        g.in_memory ? "not written yet" : size(g.size_bytes),
                        when(g.modified),
                      ]
                        .filter(Boolean)
                        .join(" · "),
                ),
              ),
            ),
          ),
    );
  };
  filter.addEventListener("input", show);
  filter.addEventListener("keydown", (event) => {
    if (event.key === "Enter") /** @type {HTMLElement|null} */ (list.querySelector("button:not(:disabled)"))?.click();
  });
  const box = dialog(
    "Graphs",
    [filter, list],
    [
      button(
        "New trace…",
        () => {
          box.close();
          traceDialog(app);
        },
        { class: "primary" },
      ),
    ],
    "wide",
  );
  show();
  filter.focus();
  app
    .listGraphs()
    .then(show)
    .catch((error) => app.complain(error));
}

/** @param {number} bytes */
const size = (bytes) => (bytes > 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} KB`);
/** @param {number} seconds */
const when = (seconds) =>
  seconds > 0 ? new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "";

/** @param {App} app @param {{name: string, members: string[], share: number}[]} groups */
export function autoGroupsDialog(app, groups) {
  const graph = app.graph;
  if (!graph) return;
  const boxes = [...groups]
    .sort((a, b) => b.share - a.share)
    .slice(0, 40)
    .map((group, i) => ({ group, check: h("input", { type: "checkbox", checked: i < 6 }) }));
  const box = dialog(
    "Groups that the edges suggest",
    [
      h(
        "p",
        { class: "muted" },
        "Features with similar inputs and outputs at one place. Those you take are pinned and grouped; undo takes them back.",
      ),
      h(
        "div",
        { class: "targets" },
        boxes.map(({ group, check }) =>
          h(
            "label",
            { class: "bar-row" },
            check,
            h(
              "span",
              { class: "bar-cell", "aria-hidden": "true" },
              h("i", { style: { width: `${Math.min(100, 100 * group.share)}%` } }),
            ),
            h("span", { class: "figure" }, percent(group.share)),
            h("span", { class: "label" }, visible(group.name)),
            h("span", { class: "muted note" }, `${group.members.length} nodes`),
          ),
        ),
      ),
    ],
    [
      button("Cancel", () => box.close()),
      button(
        "Take them",
        () => {
          const taken = boxes.filter(({ check }) => check.checked).map(({ group }) => group);
          box.close();
          app.store.set((view) =>
            taken.reduce(
              (next, group) => ({
                ...next,
                ...makeGroup(
                  next,
                  group.members.filter((id) => graph.numberOf(id) >= 0),
                  group.name,
                ),
              }),
              view,
            ),
          );
          if (taken.length) toast(`${taken.length} groups made.`, { action: ["Undo", () => app.undo()] });
        },
        { class: "primary" },
      ),
    ],
  );
}

/**
 * Somebody else has saved since: what now?
 * @param {App} app @param {import("./store.js").View} theirs
 * @returns {Promise<"mine"|"theirs"|"both"|null>}
 */
export function conflictDialog(app, theirs) {
  return new Promise((resolve) => {
    /** @type {"mine"|"theirs"|"both"|null} */
    let answer = null;
    const give = (/** @type {"mine"|"theirs"|"both"} */ what) => {
      answer = what;
      box.close();
    };
    const say = (/** @type {import("./store.js").View} */ v) =>
      `${v.pinned.length} pinned, ${v.groups.length} groups${
        v.groups.length
          ? ` (${v.groups
              .slice(0, 4)
              .map((g) => g.name)
              .join(", ")})`
          : ""
      }`;
    const box = dialog(
      "Somebody else has saved this graph",
      [
        h("p", null, "Another page saved it since this one read it. Nothing is lost yet."),
        h("p", null, "Theirs: ", h("b", null, visible(say(theirs)))),
        h("p", null, "Yours: ", h("b", null, visible(say(app.view)))),
      ],
      [
        button("Cancel", () => box.close()),
        button("Take theirs", () => give("theirs")),
        button("Save mine", () => give("mine")),
        button("Keep both", () => give("both"), { class: "primary", title: "Pins and groups of both, saved" }),
      ],
      "small",
    );
    box.addEventListener("close", () => resolve(answer));
  });
}

/** @param {App} app @param {import("./circuit.js").Circuit} circuit */
export function exportDialog(app, circuit) {
  const graph = app.graph;
  if (!graph) return;
  const file = (/** @type {string} */ format, /** @type {string} */ text) =>
    h("a", { class: "button", href: app.api.exportUrl(graph.id, format), download: `${graph.id}.${format}` }, text);
  dialog(
    "Share and export",
    [
      h("h3", null, "The view"),
      h(
        "p",
        { class: "muted" },
        "The address of this page holds pins, groups, labels, places, thresholds and filters: a link shows the same.",
      ),
      h(
        "div",
        { class: "row" },
        button(
          "Copy link",
          () => {
            app.writeUrlNow();
            copy(location.href, "Link");
          },
          { class: "primary" },
        ),
      ),
      h("h3", null, "The circuit as you arranged it"),
      h(
        "div",
        { class: "row" },
        button("SVG", () => circuit.exportSvg()),
        button("PNG", () => circuit.exportPng()),
        button("JSON", () => circuit.exportJson(), {
          title: "the graph with pins, groups and labels in its qParams: circuit-tracer’s and Neuronpedia’s viewers read it",
        }),
      ),
      h("h3", null, "The graph as it is saved"),
      h(
        "div",
        { class: "row" },
        file("json", "JSON"),
        file("graphml", "GraphML"),
        file("dot", "DOT"),
        file("csv", "links.csv"),
        file("nodes.csv", "nodes.csv"),
      ),
    ],
    [],
    "small",
  );
}

export const KEYS = /** @type {[string, [string, string][]][]} */ ([
  [
    "Look",
    [
      ["/", "search labels, tokens, ids"],
      ["← →", "previous, next node of the row"],
      ["↑ ↓", "along the strongest link out, in"],
      ["Esc", "nothing chosen"],
      ["+ − 0", "zoom in, out, all"],
      ["hold Shift", "keep what is hovered"],
      ["1 … 5", "one panel full screen: links, circuit, node, feature, what if"],
      ["[ ]", "node threshold down, up"],
    ],
  ],
  [
    "Build",
    [
      ["P, Ctrl-click", "pin, unpin"],
      ["H", "hide"],
      ["G", "group what is chosen; held: click nodes to gather"],
      ["U", "ungroup"],
      ["E", "edit the label or the group’s name"],
      ["A", "groups that are suggested"],
      ["Shift-click, Space", "choose several boxes"],
      ["Alt-arrows", "move a box"],
      ["Del", "unpin what is chosen"],
      ["Z, Shift-Z", "undo, redo"],
      ["S", "save"],
    ],
  ],
  [
    "Ask",
    [
      ["N", "new trace"],
      ["O", "open a graph"],
      ["W", "what if"],
      ["R", "run what if"],
      ["C", "compare"],
      ["X", "share and export"],
      ["T", "light or dark"],
      ["?", "this help"],
    ],
  ],
]);

/** @param {App} app */
export function helpDialog(app) {
  dialog(
    "Keys",
    [
      h(
        "div",
        { class: "keys" },
        KEYS.map(([name, keys]) =>
          h(
            "section",
            null,
            h("h3", null, name),
            h(
              "dl",
              null,
              keys.flatMap(([key, text]) => [
                h(
                  "dt",
                  null,
                  key
                    .split(/(, | … |hold )/)
                    .map((part) => (/^(, | … |hold )$/.test(part) ? part : part ? h("kbd", null, part) : null)),
                ),
                h("dd", null, text),
              ]),
            ),
          ),
        ),
      ),
      h(
        "p",
        { class: "legend" },
        h("span", { class: "glyph feature" }),
        " feature ",
        h("span", { class: "glyph error" }),
        " error: what the transcoders miss ",
        h("span", { class: "glyph token" }),
        " token or target  ",
        h("b", { class: "plus" }, "—"),
        " adds  ",
        h("b", { class: "minus" }, "—"),
        " takes away; thicker is a larger share. Shares are of all influence on the targets.",
      ),
      h(
        "p",
        { class: "muted small" },
        `circuitscope ${app.health?.version ?? ""}${app.health?.model ? ` · ${app.health.model.name}, ${app.health.model.transcoders}` : " · no model"} · `,
        h("a", { href: "api/v1/openapi.json" }, "HTTP interface"),
      ),
    ],
    [],
    "wide",
  );
}

/** Search: words to nodes. @param {App} app @param {HTMLElement} host */
export function searchBox(app, host) {
  const input = h("input", {
    type: "search",
    placeholder: "Search  /",
    "aria-label": "Search nodes by label, token or id",
    role: "combobox",
    "aria-expanded": "false",
    "aria-controls": "search-results",
    "aria-autocomplete": "list",
    autocomplete: "off",
    spellcheck: "false",
  });
  const list = h("ul", { id: "search-results", role: "listbox", "aria-label": "Nodes found", hidden: true });
  /** @type {any[]} */
  let found = [];
  let active = -1;
  /** @type {AbortController|null} */
  let control = null;
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    active = -1;
    input.removeAttribute("aria-activedescendant");
  };
  const take = (/** @type {any} */ hit, /** @type {Event|null} */ event) => {
    const e = /** @type {MouseEvent|null} */ (event);
    if (e?.ctrlKey || e?.metaKey) app.togglePin(hit.id);
    else {
      app.choose(hit.id);
      close();
      input.blur();
      document.querySelector(".plot")?.dispatchEvent(new CustomEvent("reveal", { detail: hit.n }));
    }
  };
  const show = () => {
    const graph = app.graph;
    fill(
      list,
      found.length === 0
        ? h("li", { class: "muted", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "nothing found")
        : found.map((hit, i) =>
            h(
              "li",
              {
                role: "option",
                id: `found-${i}`,
                "aria-selected": String(i === active),
                class: hit.in_cut ? "" : "outside",
                onpointerdown: (/** @type {Event} */ e) => e.preventDefault(),
                onclick: (/** @type {Event} */ e) => take(hit, e),
                onpointerenter: () => app.setHover(hit.n),
              },
              h("span", { class: `glyph small ${hit.kind}`, "aria-hidden": "true" }),
              h("span", { class: "label" }, visible(graph ? graph.name(hit.n) : hit.label)),
              h("code", null, hit.id),
              h("span", { class: "muted note" }, hit.in_cut ? hit.why : "outside the thresholds"),
            ),
          ),
    );
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    if (active >= 0) {
      input.setAttribute("aria-activedescendant", `found-${active}`);
      list.children[active]?.scrollIntoView({ block: "nearest" });
      app.setHover(found[active].n);
    }
  };
  const search = debounce(120, async () => {
    control?.abort();
    if (!input.value.trim() || !app.graph) {
      close();
      return;
    }
    control = new AbortController();
    try {
      ({ found } = await app.api.search(app.graph.id, input.value.trim(), app.at, control.signal));
      active = -1;
      show();
    } catch (error) {
      app.complain(error);
    }
  });
  input.addEventListener("input", search);
  input.addEventListener("blur", () => setTimeout(close, 120));
  input.addEventListener("focus", () => {
    if (input.value) search();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (found.length) {
        active = (active + (event.key === "ArrowDown" ? 1 : -1) + found.length) % found.length;
        show();
      }
      event.preventDefault();
    } else if (event.key === "Enter") {
      const hit = found[Math.max(0, active)];
      if (hit && !list.hidden) take(hit, event);
      event.preventDefault();
    } else if (event.key === "Escape") {
      input.value = "";
      close();
      input.blur();
    }
    event.stopPropagation();
  });
  host.append(h("div", { class: "search" }, input, list));
  return input;
}
