// The chosen node: what it is, its proof, its inputs and outputs, paths. With nothing chosen: the story of the graph.

import { button, fill, h } from "./dom.js";
import { traceDialog } from "./dialogs.js";
import { VirtualList } from "./list.js";
import { count, num, percent, probability, quoted, signed, visible } from "./scale.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./graph.js").Neighbor} Neighbor */
/** @typedef {{head: string, total: number, n: number}|Neighbor} Row */

const GROUPINGS = /** @type {const} */ ([
  ["none", "by share"],
  ["token", "by token"],
  ["layer", "by layer"],
  ["kind", "by kind"],
  ["group", "by group"],
]);

export class NodePanel {
  /** @param {HTMLElement} host @param {App} app */
  constructor(host, app) {
    this.app = app;
    this.tab = "inputs";
    this.by = "none";
    this.shownNode = -2;
    this.head = h("div", { class: "node-head" });
    this.tabs = h("div", { class: "tabs" });
    this.overview = h("div", { class: "overview scroll", tabindex: "-1" });
    /** @type {VirtualList<Row>} */
    this.list = new VirtualList({
      label: "Links",
      rowHeight: 26,
      row: (row) => this.row(row),
      onpick: (row, event) => {
        if ("id" in row) this.app.click(row.n, event);
      },
      onhover: (row) => {
        if (row && "id" in row) this.app.setHover(row.n);
        else if (!row) this.app.setHover(-1);
      },
      onend: () => this.more(),
    });
    this.paths = h("div", { class: "paths scroll" });
    this.body = h("div", { class: "node-body" }, this.list.element, this.paths);
    host.append(this.head, this.tabs, this.body, this.overview);
    app.on("graph", () => {
      this.shownNode = -2;
      this.update();
    });
    app.on("cut", () => this.update());
    app.on("view", (now, before) => {
      if (
        now.clicked !== before.clicked ||
        now.labels !== before.labels ||
        now.pinned !== before.pinned ||
        now.groups !== before.groups
      )
        this.update();
    });
    app.on("summary", () => {
      // Who writes a note goes on writing.
      if (app.clicked < 0 && !this.overview.contains(document.activeElement)) this.update();
    });
    app.on("links", (n) => {
      if (n === app.clicked) this.update();
    });
    this.update();
  }

  update() {
    const { app } = this;
    const n = app.clicked;
    const fresh = n !== this.shownNode;
    this.shownNode = n;
    const has = Boolean(app.graph) && n >= 0;
    this.overview.hidden = has;
    this.head.hidden = this.tabs.hidden = this.body.hidden = !has;
    if (!app.graph) {
      fill(this.overview);
      return;
    }
    if (!has) {
      this.showOverview();
      return;
    }
    if (fresh && this.tab === "paths") this.showPaths();
    this.showHead(n);
    this.showTabs(n);
    this.list.element.hidden = this.tab === "paths";
    this.paths.hidden = this.tab !== "paths";
    if (this.tab !== "paths") this.list.set(this.rows(n), !fresh);
  }

  /** @param {number} n */
  showHead(n) {
    const { app } = this;
    const graph = /** @type {import("./graph.js").Graph} */ (app.graph);
    const id = graph.idOf(n);
    const pinned = app.view.pinned.includes(id);
    const kind = graph.kindOf(n);
    const facts = [h("code", null, id)];
    const fact = (/** @type {string} */ name, /** @type {string} */ value, title = "") =>
      facts.push(h("span", title ? { title } : null, `${name} `, h("b", null, value)));
    if (graph.kind[n] < 2) fact("layer", String(graph.layer[n]));
    fact("at", graph.place(n));
    if (Number.isFinite(graph.activation[n])) fact("activation", num(graph.activation[n]));
    if (graph.kind[n] === 3 && graph.probability[n] > 0) fact("p", probability(graph.probability[n]));
    fact("share", percent(graph.cut.share[n]), "Part of all influence on the targets that passes through this node");
    if (!graph.cut.has[n]) facts.push(h("span", { class: "warn" }, "outside these thresholds"));
    const links = graph.links.get(n);
    fill(
      this.head,
      h(
        "div",
        { class: "title" },
        h("span", { class: `glyph ${kind}`, "aria-hidden": "true" }),
        h("h2", { title: graph.shown(n) }, graph.shown(n)),
        kind === "feature" &&
          button("✎", () => app.editLabel(n), {
            class: "plain",
            "aria-label": "Edit the label",
            title: "Edit the label (E)",
          }),
        h("span", { class: "grow" }),
        kind === "feature" &&
          app.canRun &&
          button("Explain", () => traceDialog(app, graph.header.prompt, { feature: id }), {
            title: "Trace what makes this feature active",
          }),
        button(pinned ? "Unpin" : "Pin", () => app.togglePin(id), {
          title: "P",
          class: pinned ? "pinned" : "",
          "aria-pressed": String(pinned),
        }),
        button("Hide", () => app.hide(id), { title: "H" }),
        button("×", () => app.choose(null), {
          class: "plain",
          "aria-label": "Back to the overview",
          title: "Back to the overview (Escape)",
        }),
      ),
      h("div", { class: "facts" }, facts),
      this.proof(links?.proof),
    );
  }

  /** The row identity: what goes in adds up to what the node is. @param {any} proof */
  proof(proof) {
    if (!proof) return null;
    /** @type {[string, number|null, string][]} */
    const parts = [
      ["features", proof.from_features, "plus"],
      ["errors", proof.from_errors, "error"],
      ["tokens", proof.from_tokens, "token"],
      ["bias", proof.bias, "bias"],
    ];
    if (proof.from_contexts) parts.splice(3, 0, ["contexts", proof.from_contexts, "token"]);
    if (proof.unselected) parts.push(["without a row", proof.unselected, "rest"]);
    const total = parts.reduce((sum, [, value]) => sum + Math.abs(value ?? 0), 0) || 1;
    const holds = proof.relative_error <= 1e-4;
    return h(
      "div",
      {
        class: "proof",
        title: "Every row of the graph adds up to the pre-activation (for a target, the logit) that it explains",
      },
      h(
        "div",
        { class: "sum" },
        ...parts.flatMap(([name, value], i) => [
          i > 0 && h("i", null, " + "),
          h("span", null, `${name} `, h("b", null, signed(value))),
        ]),
        h("i", null, " = "),
        h("b", null, num(proof.pre_activation, 5)),
        h(
          "span",
          { class: holds ? "good" : "bad" },
          holds ? ` ✓ off by ${num(Math.abs(proof.relative_error))}` : ` ✗ off by ${num(Math.abs(proof.relative_error))}`,
        ),
      ),
      h(
        "div",
        { class: "stack", "aria-hidden": "true" },
        parts.map(([, value, kind]) =>
          h("span", {
            class: `${kind}${(value ?? 0) < 0 ? " negative" : ""}`,
            style: { width: `${(100 * Math.abs(value ?? 0)) / total}%` },
          }),
        ),
      ),
    );
  }

  /** @param {number} n */
  showTabs(n) {
    const links = this.app.graph?.links.get(n);
    const tab = (/** @type {string} */ name, /** @type {string} */ text) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": String(this.tab === name),
          tabindex: this.tab === name ? "0" : "-1",
          onclick: () => {
            this.tab = name;
            if (name === "paths") this.showPaths();
            this.list.set([]);
            this.update();
          },
        },
        text,
      );
    const by = h(
      "select",
      {
        "aria-label": "Order of the links",
        value: this.by,
        onchange: (/** @type {Event} */ e) => {
          this.by = /** @type {HTMLSelectElement} */ (e.target).value;
          this.update();
        },
      },
      GROUPINGS.map(([value, text]) => h("option", { value }, text)),
    );
    const focused = this.tabs.contains(document.activeElement) && document.activeElement?.getAttribute("role") === "tab";
    fill(
      this.tabs,
      h(
        "div",
        { role: "tablist", "aria-label": "Links of the node" },
        tab("inputs", `Inputs ${links ? count(links.inputs.total) : ""}`),
        tab("outputs", `Outputs ${links ? count(links.outputs.total) : ""}`),
        tab("paths", "Paths"),
      ),
      h("span", { class: "grow" }),
      this.tab !== "paths" && by,
    );
    if (focused) /** @type {HTMLElement|null} */ (this.tabs.querySelector("[aria-selected=true]"))?.focus();
    this.tabs.onkeydown = (event) => {
      const all = ["inputs", "outputs", "paths"];
      const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
      if (!by || /** @type {Element} */ (event.target).getAttribute("role") !== "tab") return;
      this.tab = all[(all.indexOf(this.tab) + by + 3) % 3];
      if (this.tab === "paths") this.showPaths();
      this.update();
      event.preventDefault();
      event.stopPropagation();
    };
  }

  /** @param {number} n @returns {Row[]} */
  rows(n) {
    const graph = /** @type {import("./graph.js").Graph} */ (this.app.graph);
    const links = graph.links.get(n);
    if (!links) return [];
    const list = this.tab === "outputs" ? links.outputs.links : links.inputs.links;
    if (this.by === "none") return list;
    /** @type {Map<string, Neighbor[]>} */
    const groups = new Map();
    const groupOf = new Map(
      this.app.view.groups.flatMap((g) => g.ids.map((id) => /** @type {[string, string]} */ ([id, g.name]))),
    );
    for (const link of list) {
      const key =
        this.by === "token"
          ? `${quoted(graph.tokens[link.pos] ?? "")} @${link.pos}`
          : this.by === "layer"
            ? link.kind === "token" || link.kind === "context"
              ? "tokens"
              : link.kind === "target"
                ? "targets"
                : `layer ${graph.layer[link.n]}`
            : this.by === "kind"
              ? `${link.kind}s`
              : (groupOf.get(link.id) ?? "in no group");
      const group = groups.get(key);
      if (group) group.push(link);
      else groups.set(key, [link]);
    }
    const sum = (/** @type {Neighbor[]} */ g) => g.reduce((a, link) => a + link.share, 0);
    return [...groups.entries()]
      .sort((a, b) => sum(b[1]) - sum(a[1]))
      .flatMap(([head, group]) => [{ head, total: sum(group), n: group.length }, ...group]);
  }

  /** @param {Row} row */
  row(row) {
    if ("head" in row)
      return h(
        "div",
        { class: "head" },
        h("b", null, visible(row.head)),
        h("span", { class: "muted" }, `${count(row.n)} · ${percent(row.total)}`),
      );
    const { app } = this;
    const graph = /** @type {import("./graph.js").Graph} */ (app.graph);
    const negative = row.weight < 0;
    const pinned = app.view.pinned.includes(row.id);
    const name = graph.shown(row.n);
    const place = graph.place(row.n);
    return h(
      "div",
      { class: `link${row.in_cut ? "" : " outside"}${row.n === app.hover ? " hovered" : ""}`, title: `${row.id}  ${name}` },
      h(
        "span",
        { class: `bar-cell ${negative ? "minus" : "plus"}`, "aria-hidden": "true" },
        h("i", { style: { width: `${Math.min(100, 100 * Math.sqrt(row.share))}%` } }),
      ),
      h("span", { class: "figure share" }, percent(row.share)),
      h("span", { class: `figure weight ${negative ? "minus" : "plus"}` }, signed(row.weight)),
      h("span", { class: `glyph small ${row.kind}`, "aria-label": row.kind, role: "img" }),
      h(
        "span",
        { class: `label${graph.label(row.n) ? "" : " unnamed"}` },
        pinned && h("span", { class: "pin-dot", title: "pinned" }, "●"),
        name,
      ),
      h(
        "span",
        { class: "figure place" },
        row.kind === "feature" || row.kind === "error" ? `${place} · L${graph.layer[row.n]}` : place,
      ),
    );
  }

  async more() {
    const { app } = this;
    const n = app.clicked;
    if (n < 0 || this.busy || (this.tab !== "inputs" && this.tab !== "outputs")) return;
    this.busy = true;
    try {
      const more = await app.graph?.moreLinks(n, this.tab);
      if (more && n === app.clicked) this.list.set(this.rows(n), true);
    } catch (error) {
      app.complain(error);
    } finally {
      this.busy = false;
    }
  }

  // -- paths -------------------------------------------------------------------------------------------------------------

  showPaths() {
    const { app } = this;
    const graph = app.graph;
    if (!graph) return;
    const n = app.clicked;
    const id = n >= 0 ? graph.idOf(n) : "";
    const isTarget = n >= 0 && graph.kind[n] === 3;
    const from = h("input", {
      type: "text",
      value: isTarget ? "" : id,
      placeholder: "all tokens",
      "aria-label": "Paths from (ids or a label)",
      spellcheck: "false",
    });
    const to = h("input", {
      type: "text",
      value: isTarget ? id : "",
      placeholder: "the first target",
      "aria-label": "Paths to (ids or a label)",
      spellcheck: "false",
    });
    const k = h("input", { type: "number", value: "10", min: "1", max: "100", "aria-label": "How many paths" });
    const out = h("div", { class: "path-list", role: "list", "aria-live": "polite" });
    const find = async () => {
      try {
        const { paths, total } = await app.api.paths(graph.id, app.at, {
          from: from.value.trim(),
          to: to.value.trim(),
          k: Number(k.value) || 10,
        });
        fill(
          out,
          h(
            "p",
            { class: "muted" },
            paths.length === 0
              ? "No path leads from the one to the other at these thresholds."
              : `${paths.length} strongest paths; all together ${percent(total)} of the input.`,
          ),
          paths.map((/** @type {any} */ path) => this.pathRow(path)),
        );
        app.setTrail(paths.map((/** @type {any} */ path) => path.nodes));
      } catch (error) {
        app.complain(error, "no paths");
      }
    };
    const use = (/** @type {HTMLInputElement} */ input, /** @type {string} */ what) =>
      button(
        "pinned",
        () => {
          input.value = app.view.pinned.join(",");
        },
        { title: `${what} everything that is pinned`, class: "plain" },
      );
    fill(
      this.paths,
      h(
        "form",
        {
          class: "path-form",
          onsubmit: (/** @type {Event} */ e) => {
            e.preventDefault();
            find();
          },
        },
        h("label", null, "from", from, use(from, "from")),
        h("label", null, "to", to, use(to, "to")),
        h("label", { title: "how many" }, k),
        h("button", { type: "submit", class: "primary" }, "Find"),
      ),
      out,
    );
    find();
  }

  /** @param {{nodes: number[], weights?: number[], strength: number, effect?: number, is_negative?: boolean}} path */
  pathRow(path) {
    const { app } = this;
    const graph = /** @type {import("./graph.js").Graph} */ (app.graph);
    const negative = path.is_negative ?? (path.effect ?? 0) < 0;
    const steps = path.nodes.map((n) => h("span", { class: `step ${graph.kindOf(n)}` }, graph.shown(n)));
    const show = () => app.setTrail([path.nodes]);
    return h(
      "div",
      { class: "path", role: "listitem" },
      h(
        "button",
        { type: "button", class: "steps", onclick: show, onpointerenter: show, title: "Show in the graph" },
        h("span", { class: `figure ${negative ? "minus" : "plus"}` }, percent(path.strength)),
        ...steps.flatMap((step, i) => (i > 0 ? [h("i", null, "→"), step] : [step])),
      ),
      pinButton(
        app,
        path.nodes.map((n) => graph.idOf(n)),
        "the nodes of this path",
      ),
    );
  }

  // -- overview ----------------------------------------------------------------------------------------------------------

  showOverview() {
    const { app } = this;
    const graph = app.graph;
    if (!graph) return;
    const summary = graph.header.summary ?? {};
    const info = graph.cut.info;
    const targets = [...graph.header.targets].sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
    const parts = [];
    parts.push(
      h("h2", null, "What does the model say?"),
      h(
        "div",
        { class: "targets" },
        targets.slice(0, 6).map((target) =>
          this.barRow({
            name: visible(target.text),
            value: target.probability ?? 0,
            text: target.probability === null ? "" : probability(target.probability),
            n: target.n,
          }),
        ),
      ),
    );
    const counts = info.counts;
    if (counts) {
      parts.push(
        h(
          "p",
          { class: "muted" },
          `Kept: ${many(counts.features, "feature")}, ${many(counts.errors, "error")}, ${many(counts.tokens, "token")}, ${many(counts.targets, "target")}; ${many(counts.edges ?? info.n_links, "link")}` +
            `${graph.header.n_links ? ` of ${count(graph.header.n_nodes)} nodes and ${count(graph.header.n_links)} links` : ""}.` +
            `${info.of_whole ? ` The kept features explain: replacement ${info.of_whole.replacement.toFixed(3)}, completeness ${info.of_whole.completeness.toFixed(3)}.` : ""}`,
        ),
      );
    }
    const strongest = summary.strongest_by_name ?? [];
    if (strongest.length) {
      parts.push(
        h("h2", null, "Strongest nodes"),
        h(
          "div",
          { class: "targets" },
          strongest.slice(0, 10).map((/** @type {any} */ named) => {
            const ids = named.nodes.map((/** @type {any} */ node) => node.id);
            const n = graph.numberOf(ids[0]);
            const name = n >= 0 && named.is_label ? graph.name(n) : named.name;
            return this.barRow({
              name: `${visible(name)}`,
              note: `${named.n_nodes > 1 ? `${named.n_nodes} ${named.kind}s ` : named.kind === "error" ? "error " : ""}at ${visible(graph.tokens[named.pos] ?? "").trim() || "␣"}@${named.pos}`,
              value: named.share,
              text: percent(named.share),
              n,
              sign: named.direct,
              pin: ids,
            });
          }),
        ),
      );
    }
    const effects = summary.effects?.[0];
    if (effects?.positions?.length) parts.push(...this.effects(effects));
    const paths = (summary.paths ?? [])
      .map((/** @type {any} */ p) => ({ ...p, nodes: p.nodes.map((/** @type {any} */ node) => graph.numberOf(node.id)) }))
      .filter((/** @type {any} */ p) => p.nodes.every((/** @type {number} */ n) => n >= 0));
    if (paths.length)
      parts.push(
        h("h2", null, "Strongest paths"),
        h(
          "div",
          { class: "path-list", role: "list" },
          paths.map((/** @type {any} */ p) => this.pathRow(p)),
        ),
      );
    parts.push(...this.truth());
    if (app.health?.can_save || app.view.note) {
      parts.push(
        h("h2", null, "Note"),
        h("textarea", {
          rows: "3",
          "aria-label": "Note",
          maxlength: "20000",
          placeholder: "What have you found? Saved with the graph.",
          value: app.view.note,
          oninput: (/** @type {Event} */ e) =>
            app.store.set({ note: /** @type {HTMLTextAreaElement} */ (e.target).value }, "note"),
        }),
      );
    }
    fill(this.overview, parts);
  }

  /** @param {{name: string, value: number, text: string, n: number, note?: string, sign?: number, pin?: string[]}} row */
  barRow({ name, value, text, n, note = "", sign, pin }) {
    const { app } = this;
    return h(
      "div",
      { class: "bar-row" },
      h(
        "button",
        {
          type: "button",
          class: "pick",
          disabled: n < 0,
          onclick: (/** @type {MouseEvent} */ e) => app.click(n, e),
          onpointerenter: () => app.setHover(n),
          onpointerleave: () => app.setHover(-1),
          onfocus: () => app.setHover(n),
          onblur: () => app.setHover(-1),
        },
        h(
          "span",
          { class: "bar-cell", "aria-hidden": "true" },
          h("i", { style: { width: `${Math.min(100, 100 * value)}%` } }),
        ),
        h("span", { class: "figure" }, text),
        h("span", { class: "label" }, name),
        note && h("span", { class: "muted note" }, note),
      ),
      sign !== undefined &&
        h(
          "span",
          { class: `figure weight ${sign < 0 ? "minus" : "plus"}`, title: "direct effect on the target" },
          signed(sign),
        ),
      pin && pinButton(app, pin, name),
    );
  }

  /** What each token contributes. @param {any} effects */
  effects(effects) {
    const { app } = this;
    const graph = /** @type {import("./graph.js").Graph} */ (app.graph);
    const rows = effects.positions.filter(
      (/** @type {any} */ p) => p.token_share > 0.001 || Math.abs(p.features + p.errors + p.token) > 1e-6,
    );
    const largest = Math.max(
      ...rows.map((/** @type {any} */ p) =>
        Math.max(Math.abs(p.features + p.errors + p.token), Math.abs(p.token_along_paths ?? 0)),
      ),
      1e-9,
    );
    const bar = (/** @type {number} */ x) =>
      h(
        "td",
        { class: "two" },
        h("span", {
          class: x < 0 ? "minus" : "plus",
          style: { width: `${(50 * Math.abs(x)) / largest}%`, [x < 0 ? "right" : "left"]: "50%" },
        }),
        h("b", null, signed(x)),
      );
    return [
      h(
        "h2",
        null,
        `Effects on ${quoted(effects.text)}${effects.value !== undefined && effects.value !== null ? `, ${signed(effects.value, 4)}` : ""}`,
      ),
      h(
        "table",
        { class: "effects" },
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            h("th", { scope: "col" }, "position"),
            h("th", { scope: "col", title: "straight into the target" }, "directly from here"),
            h("th", { scope: "col", title: "along all paths" }, "of the token, by all paths"),
            h("th", { scope: "col" }, "share"),
          ),
        ),
        h(
          "tbody",
          null,
          rows.map((/** @type {any} */ p) =>
            h(
              "tr",
              null,
              h("th", { scope: "row" }, `${visible(graph.tokens[p.pos] ?? p.text).trim() || "␣"}@${p.pos}`),
              bar(p.features + p.errors + p.token),
              p.token_along_paths === null || p.token_along_paths === undefined
                ? h("td", null, "–")
                : bar(p.token_along_paths),
              h("td", { class: "figure" }, percent(p.token_share)),
            ),
          ),
        ),
      ),
    ];
  }

  /** Is the graph true? What was measured, or how to measure it. */
  truth() {
    const { app } = this;
    const graph = /** @type {import("./graph.js").Graph} */ (app.graph);
    const v = graph.header.verification;
    const out = [h("h2", null, "Is the graph true?")];
    const proof = graph.header.proof;
    if (proof)
      out.push(
        h(
          "p",
          null,
          h(
            "span",
            { class: proof.row_identity_error <= 1e-4 ? "good" : "bad" },
            proof.row_identity_error <= 1e-4 ? "✓ " : "✗ ",
          ),
          `Proof: every row adds up to what it explains; the worst is off by ${num(proof.row_identity_error)}.`,
        ),
      );
    if (v) out.push(...this.verified(v));
    const why = !graph.header.raw
      ? "Measuring needs the raw graph (.safetensors), which is not beside this file."
      : !app.canRun
        ? "Measuring needs the model: start the server with --model and --transcoders."
        : "";
    out.push(
      why
        ? h("p", { class: "muted" }, why)
        : h(
            "div",
            { class: "row" },
            button(v ? "Measure again" : "Measure in the model", () => this.verify(), {
              class: v ? "" : "primary",
              title: "Edges against measured effects, single ablations against predictions",
            }),
            this.verifying && h("span", { class: "muted", role: "status" }, this.verifying),
            this.verifying && button("Cancel", () => this.verifyControl?.abort()),
          ),
    );
    return out;
  }

  /** @param {any} v the report of `verify` */
  verified(v) {
    const mark = (/** @type {boolean} */ ok) => h("span", { class: ok ? "good" : "bad" }, ok ? "✓ " : "✗ ");
    const out = [];
    const edges = v.edges;
    if (edges)
      out.push(
        h(
          "p",
          null,
          mark(edges.passed !== false),
          `Edges: ${count(edges.n_edges)} measured in the model, ${(100 * edges.share_within).toFixed(2)} % within tolerance; largest error ${num(edges.largest_error)}, largest edge ${num(edges.largest_edge)}.`,
        ),
      );
    const faith = v.faithfulness;
    const modes = faith?.modes ?? [];
    if (modes.length) {
      out.push(
        h(
          "p",
          null,
          `Features ablated one by one: change of ${quoted(faith.target ?? "the target")} as the graph predicts (across) and as it is (up).`,
        ),
        h(
          "div",
          { class: "scatters" },
          modes.map((/** @type {any} */ mode) => scatter(mode)),
        ),
      );
    }
    const c = v.circuit;
    const at = (/** @type {any[]} */ curve) => curve?.find((p) => p.share >= 0.5);
    const enough = at(c?.sufficiency),
      needed = at(c?.necessity);
    if (enough)
      out.push(
        h(
          "p",
          null,
          `Sufficient? Without half of what pruning dropped (${count(enough.n_ablated)} features) the answer moves by ${num(enough.kl_divergence)} nats; without as many at random by ${num(enough.kl_divergence_random)}.`,
        ),
      );
    if (needed)
      out.push(
        h(
          "p",
          null,
          `Necessary? Without half of what it kept (${count(needed.n_ablated)} features) it moves by ${num(needed.kl_divergence)} nats; without as many at random by ${num(needed.kl_divergence_random)}.`,
        ),
      );
    return out;
  }

  async verify() {
    const { app } = this;
    const graph = app.graph;
    if (!graph) return;
    this.verifyControl = new AbortController();
    this.verifying = "waiting…";
    this.showOverview();
    try {
      const report = await app.api.run(
        {
          kind: "verify",
          graph: graph.id,
          node_threshold: app.at.node_threshold ?? undefined,
          edge_threshold: app.at.edge_threshold ?? undefined,
        },
        {
          signal: this.verifyControl.signal,
          onevent: (name, data) => {
            if (name === "progress") {
              this.verifying = `${data.phase} ${data.total ? percent(data.done / data.total) : ""}`;
              if (app.clicked < 0) this.showOverview();
            }
          },
        },
      );
      graph.header.verification = report;
      graph.links.clear();
    } catch (error) {
      app.complain(error, "not measured");
    } finally {
      this.verifying = "";
      if (app.clicked < 0) this.showOverview();
      else app.wantLinks(app.clicked);
    }
  }
}

/** Pins all of these, or takes all of them out again. @param {App} app @param {string[]} ids @param {string} what */
function pinButton(app, ids, what) {
  const all = ids.every((id) => app.view.pinned.includes(id));
  return all
    ? button("Pinned", () => app.store.set((view) => ({ pinned: view.pinned.filter((id) => !ids.includes(id)) })), {
        class: "pinned",
        "aria-label": `Pinned: take out ${what}`,
      })
    : button("Pin", () => app.pinAll(ids), { "aria-label": `Pin ${what}` });
}

/** @param {number} n @param {string} what */
const many = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

/** Predicted against real, one dot a feature. @param {any} mode */
function scatter(mode) {
  const points = (mode.single ?? []).map((/** @type {any} */ p) => [p.predicted, p.real]);
  const largest = Math.max(1e-9, ...points.flat().map(Math.abs));
  const canvas = h("canvas", {
    width: "240",
    height: "180",
    role: "img",
    "aria-label": `${mode.mode}: ${points.length} features, correlation ${mode.pearson === null ? "unknown" : Number(mode.pearson).toFixed(2)}`,
  });
  const c = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  if (c) {
    c.scale(2, 2);
    const x = (/** @type {number} */ v) => 60 + (v / largest) * 54,
      y = (/** @type {number} */ v) => 45 - (v / largest) * 40;
    c.strokeStyle = style.getPropertyValue("--line");
    c.beginPath();
    c.moveTo(4, 45);
    c.lineTo(116, 45);
    c.moveTo(60, 3);
    c.lineTo(60, 87);
    c.stroke();
    c.setLineDash([3, 3]);
    c.beginPath();
    c.moveTo(x(-largest), y(-largest));
    c.lineTo(x(largest), y(largest));
    c.stroke();
    c.fillStyle = style.getPropertyValue("--accent");
    for (const [a, b] of points) {
      c.beginPath();
      c.arc(x(a), y(b), 2, 0, 7);
      c.fill();
    }
  }
  return h(
    "figure",
    null,
    canvas,
    h(
      "figcaption",
      null,
      `${mode.mode} `,
      h(
        "span",
        { class: "muted" },
        mode.pearson === null || mode.pearson === undefined ? "" : `r = ${Number(mode.pearson).toFixed(2)}`,
      ),
    ),
  );
}
