// Two graphs beside each other: what both have, what one has alone; a node here points at its twin there.

import { fill, h } from "./dom.js";
import { LinkGraph } from "./linkgraph.js";
import { VirtualList } from "./list.js";
import { num, percent, shorten, visible } from "./scale.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./graph.js").Graph} Graph */

export class Compare {
  /** @param {HTMLElement} host @param {HTMLElement} second where the other graph is drawn @param {App} app */
  constructor(host, second, app) {
    this.app = app;
    /** @type {any} */
    this.diff = null;
    this.tab = "shared";
    this.twinNode = -1;
    /** Features of both. @type {Set<string>} */
    this.both = new Set();
    this.title = h("h2", null, "");
    second.append(h("div", { class: "bar" }, this.title));
    const plot = h("div", { class: "field" });
    second.append(plot);
    this.drawing = new LinkGraph(plot, app, {
      graph: () => app.other,
      label: "Link graph of the other prompt",
      secondary: true,
      twin: () => this.twinNode,
      mark: (n) => this.mark(app.other, n),
    });
    this.head = h("div", { class: "compare-head" });
    this.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Features" });
    /** @type {VirtualList<any>} */
    this.list = new VirtualList({
      label: "Features of the two graphs",
      rowHeight: 30,
      row: (row) => this.row(row),
      onhover: (row) => this.point(row),
      onpick: (row, event) => {
        const n = this.find(app.graph, row, row?.left_positions);
        if (n >= 0) app.click(n, event);
      },
    });
    host.append(this.head, this.tabs, this.list.element);
    app.on("other", () => this.load());
    app.on("graph", () => {
      this.diff = null;
      this.show();
      if (app.other) this.load();
    });
    app.on("graphs", () => this.show());
    app.on("cut", () => {
      if (app.other) this.load();
    });
    app.on("hover", (other) => {
      if (other) this.fromOther(other);
      else this.toOther();
    });
    this.show();
  }

  /** Colour of a node's ring. @param {Graph|null} graph @param {number} n */
  mark(graph, n) {
    if (!this.diff || !graph || graph.kind[n] !== 0) return null;
    const style = getComputedStyle(document.documentElement);
    return this.both.has(graph.featureKey(n) ?? "") ? style.getPropertyValue("--good").trim() : null;
  }

  async load() {
    const { app } = this;
    const { graph, other } = app;
    this.diff = null;
    this.both = new Set();
    if (graph && other) {
      try {
        const diff = await app.api.diff(graph.id, other.id, app.at);
        if (app.other !== other || app.graph !== graph) return;
        this.diff = diff;
        this.both = new Set(diff.shared.map((/** @type {any} */ f) => `${f.layer}_${f.feature}`));
      } catch (error) {
        app.complain(error, "cannot compare");
      }
    }
    this.show();
    this.drawing.update();
    app.tell("compared");
  }

  show() {
    const { app } = this;
    const { graph, other } = app;
    const choices = app.graphs.filter((g) => g.id !== graph?.id && !g.problem);
    const select = h(
      "select",
      {
        "aria-label": "The other graph",
        value: other?.id ?? "",
        onchange: (/** @type {Event} */ e) => app.compare(/** @type {HTMLSelectElement} */ (e.target).value || null),
      },
      h("option", { value: "" }, choices.length ? "choose a graph…" : "no other graph here"),
      choices.map((g) => h("option", { value: g.id }, shorten(visible(g.prompt || g.id), 70))),
    );
    this.title.textContent = other ? visible(other.header.prompt) : "";
    const d = this.diff;
    fill(
      this.head,
      h("div", { class: "title" }, h("h2", null, "Compare with"), select),
      d
        ? h(
            "div",
            { class: "facts" },
            h("span", { title: "features of both over features of either" }, "in both ", h("b", null, percent(d.jaccard))),
            h(
              "span",
              { title: "cosine of the shares of influence: 1 where the same features carry the same parts" },
              "similarity ",
              h("b", null, num(d.similarity)),
            ),
            h("span", { class: "muted" }, "ringed in green: in both"),
          )
        : h(
            "p",
            { class: "muted" },
            other
              ? "comparing…"
              : "Which features explain both answers, and which only one? Choose a second graph, or trace one.",
          ),
    );
    const tab = (/** @type {string} */ name, /** @type {string} */ text) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": String(this.tab === name),
          onclick: () => {
            this.tab = name;
            this.show();
          },
        },
        text,
      );
    this.tabs.hidden = this.list.element.hidden = !d;
    if (!d) return;
    fill(
      this.tabs,
      tab("shared", `Both ${d.shared.length}`),
      tab("only_left", `Only here ${d.only_left.length}`),
      tab("only_right", `Only there ${d.only_right.length}`),
    );
    this.list.set(d[this.tab]);
  }

  /** @param {any} f */
  row(f) {
    const bar = (/** @type {number} */ share, /** @type {string} */ side) =>
      h(
        "span",
        { class: `bar-cell ${side}`, title: side === "left" ? "share here" : "share there" },
        h("i", { style: { width: `${Math.min(100, 100 * Math.sqrt(share))}%` } }),
      );
    const label = this.app.view.labels[`${f.layer}_${f.feature}`] || f.label;
    return h(
      "div",
      { class: "link compare-row" },
      h("span", { class: "figure share" }, f.left_positions.length ? percent(f.left_share) : "–"),
      bar(f.left_share, "left"),
      bar(f.right_share, "right"),
      h("span", { class: "figure share" }, f.right_positions.length ? percent(f.right_share) : "–"),
      h("span", { class: `label${label ? "" : " unnamed"}` }, label ? visible(label) : `feature ${f.layer}_${f.feature}`),
      h(
        "span",
        { class: "figure place" },
        [f.left_positions.join(","), f.right_positions.join(",")]
          .filter(Boolean)
          .map((x) => `@${x}`)
          .join(" | "),
      ),
    );
  }

  /** @param {Graph|null} graph @param {any} f @param {number[]|undefined} positions */
  find(graph, f, positions) {
    if (!graph || !f || !positions?.length) return -1;
    for (const n of graph.cut.nodes)
      if (
        graph.kind[n] === 0 &&
        graph.layer[n] === f.layer &&
        graph.feature[n] === f.feature &&
        positions.includes(graph.pos[n])
      )
        return n;
    return -1;
  }

  /** @param {any} row */
  point(row) {
    const { app } = this;
    this.twinNode = row ? this.find(app.other, row, row.right_positions) : -1;
    this.drawing.drawOverSoon();
    app.setHover(row ? this.find(app.graph, row, row.left_positions) : -1);
  }

  /** The node of `to` that a node of `from` is. @param {Graph} from @param {number} n @param {Graph} to @param {[number, number][]} aligned */
  twin(from, n, to, aligned) {
    if (from.kind[n] === 3) return [...to.cut.nodes].find((m) => to.kind[m] === 3 && to.name(m) === from.name(n)) ?? -1;
    const pos = aligned.find(([p]) => p === from.pos[n])?.[1];
    const same = [...to.cut.nodes].filter(
      (m) =>
        to.kind[m] === from.kind[n] &&
        to.layer[m] === from.layer[n] &&
        (from.kind[n] !== 0 || to.feature[m] === from.feature[n]),
    );
    return same.find((m) => to.pos[m] === pos) ?? (from.kind[n] === 0 ? (same[0] ?? -1) : -1);
  }

  toOther() {
    const { graph, other, hover } = this.app;
    if (!graph || !other || !this.diff) return;
    const twin = hover >= 0 ? this.twin(graph, hover, other, this.diff.aligned) : -1;
    if (twin === this.twinNode) return;
    this.twinNode = twin;
    this.drawing.drawOverSoon();
  }

  /** @param {{other: number, picked?: boolean}} event */
  fromOther({ other: n, picked }) {
    const { app } = this;
    const { graph, other } = app;
    if (!graph || !other) return;
    const back = (this.diff?.aligned ?? []).map(
      (/** @type {[number, number]} */ [a, b]) => /** @type {[number, number]} */ ([b, a]),
    );
    const twin = n >= 0 ? this.twin(other, n, graph, back) : -1;
    if (picked && twin >= 0) app.choose(graph.idOf(twin));
    app.setHover(twin);
    this.twinNode = n;
    this.drawing.drawOverSoon();
  }
}
