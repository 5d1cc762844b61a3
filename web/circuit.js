// The circuit: pinned nodes and groups as boxes, laid out by the server as its pictures are, moved by hand from there.

import { button, debounce, download, fill, h, s, toast } from "./dom.js";
import { change, clamp, percent, signed, visible } from "./scale.js";
import { writeParams } from "./url.js";

/** @typedef {import("./app.js").App} App */
/**
 * @typedef {object} Box
 * @property {string} key node id or `group:name` @property {string[]} ids @property {string} name @property {string} kind @property {number} n
 * @property {number} x @property {number} y @property {number} width @property {number} height @property {string[]} lines @property {string} small
 * @property {boolean} moved
 */
/** @typedef {{source: number, target: number, weight: number, share: number, width: number, curve: number[][][]}} Edge */

const GRID = 2;
/** The layout's own measures (`picture`): room above the first line, height of a line, least room between rows here. */
const PADDING = 4,
  LINE = 13,
  SMALL = 10,
  MIN_GAP = 20;

export class Circuit {
  /** @param {HTMLElement} host @param {App} app */
  constructor(host, app) {
    this.app = app;
    /** @type {Box[]} */
    this.boxes = [];
    /** @type {Edge[]} */
    this.edges = [];
    /** @type {any} */
    this.laid = null;
    this.asked = "";
    this.focusKey = "";
    this.zoom = { k: 1, x: 0, y: 0 };
    /** Heights of the layout and here: the room between rows shrinks to what the panel has. @type {[number, number][]} */
    this.bends = [];
    this.scores = h("span", { class: "scores", role: "status" });
    this.status = h("span", { class: "muted" });
    const act = (/** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ work, props = {}) =>
      button(text, work, { title, ...props });
    this.buttons = {
      group: act("Group", "Make one supernode of the chosen boxes (G)", () => app.group(app.members(app.selection))),
      ungroup: act("Ungroup", "Take the chosen groups apart (U)", () => this.ungroup()),
      rename: act("Rename", "Name the chosen group or node (E)", () => this.rename()),
      unpin: act("Unpin", "Take the chosen boxes out of the circuit (Delete)", () => this.unpin()),
      auto: act("Auto groups", "Supernodes that the edges suggest (A)", () => this.autoGroups()),
      tidy: act("Tidy", "Put all boxes where the automatic layout has them", () => app.store.set({ places: {} })),
      undo: act("↶", "Undo (Z)", () => app.undo(), { "aria-label": "Undo" }),
      redo: act("↷", "Redo (Shift-Z)", () => app.redo(), { "aria-label": "Redo" }),
    };
    const { group, ungroup, rename, unpin, auto, tidy, undo, redo } = this.buttons;
    this.bar = h(
      "div",
      { class: "bar", role: "toolbar", "aria-label": "Circuit" },
      h("h2", null, "Circuit"),
      h("span", { class: "grow" }),
      group,
      ungroup,
      rename,
      unpin,
      auto,
      tidy,
      undo,
      redo,
    );
    this.scene = s("g", { class: "scene" });
    this.svg = s("svg", { class: "circuit", role: "group", "aria-label": "Circuit: pinned nodes and groups" }, this.scene);
    this.empty = h("div", { class: "empty" });
    this.field = h("div", { class: "field" }, this.svg, this.empty);
    host.append(this.bar, this.field, h("div", { class: "foot" }, this.scores));
    this.layOutSoon = debounce(30, () => this.layOut());
    app.on("graph", () => {
      this.laid = null;
      this.asked = "";
      this.boxes = [];
      this.edges = [];
      this.zoomed = false;
      this.update();
    });
    app.on("view", (now, before) => {
      if (
        now.pinned !== before.pinned ||
        now.groups !== before.groups ||
        now.labels !== before.labels ||
        now.clicked !== before.clicked ||
        now.places !== before.places
      )
        this.update();
      this.showButtons();
    });
    app.on("cut", () => {
      this.asked = "";
      this.update();
    });
    app.on("run", () => this.draw());
    app.on("selection", () => this.draw());
    app.on("hover", () => this.showHover());
    app.on("scores", () => this.showScores());
    new ResizeObserver(() => this.fit()).observe(this.field);
    this.listen();
    this.update();
  }

  update() {
    const { graph, view } = this.app;
    this.showButtons();
    if (!graph || view.pinned.length === 0) {
      this.boxes = [];
      this.edges = [];
      this.asked = "";
      this.scene.replaceChildren();
      this.showEmpty();
      return;
    }
    this.empty.hidden = true;
    const labels = view.labels;
    const of = {
      pinned: view.pinned,
      groups: view.groups.map((g) => ({ name: g.name, members: g.ids })),
      labels,
      ...this.app.at,
      max_nodes: 200,
    };
    const text = JSON.stringify(of);
    if (text === this.asked) this.place();
    else {
      this.asked = text;
      this.wanted = of;
      this.layOutSoon();
    }
  }

  showEmpty() {
    const { app } = this;
    this.empty.hidden = false;
    if (!app.graph) {
      fill(this.empty);
      return;
    }
    fill(
      this.empty,
      h("p", null, "Pin nodes to build the circuit: Ctrl-click a node, or choose it and press P."),
      h(
        "div",
        { class: "row" },
        button("Pin the strongest", () => this.pinStrongest(), { class: "primary" }),
        button("Auto groups", () => this.autoGroups()),
      ),
    );
  }

  /** The strongest nodes with the target and the tokens they come from: a start. */
  pinStrongest() {
    const graph = this.app.graph;
    if (!graph) return;
    const by = (/** @type {number} */ kind) =>
      [...graph.cut.nodes].filter((n) => graph.kind[n] === kind).sort((a, b) => graph.cut.share[b] - graph.cut.share[a]);
    const targets = by(3).sort((a, b) => graph.probability[b] - graph.probability[a]);
    const chosen = [
      ...by(0).slice(0, 12),
      ...by(2)
        .filter((n) => graph.cut.share[n] > 0.05)
        .slice(0, 5),
      ...targets.slice(0, 1),
    ];
    this.app.pinAll(chosen.map((n) => graph.idOf(n)));
  }

  async autoGroups() {
    const { app } = this;
    const graph = app.graph;
    if (!graph) return;
    try {
      const { groups } = await app.api.autoGroups(graph.id, app.at);
      if (groups.length === 0) {
        toast("The edges suggest no groups at these thresholds.");
        return;
      }
      (await import("./dialogs.js")).autoGroupsDialog(app, groups);
    } catch (error) {
      app.complain(error, "no groups");
    }
  }

  async layOut() {
    const { app } = this;
    const graph = app.graph;
    const asked = this.asked;
    if (!graph || !asked) return;
    for (const id of app.view.pinned) {
      const n = graph.numberOf(id);
      if (n >= 0)
        Promise.resolve(graph.linksOf(n)).then(
          () => app.tell("trail"),
          (error) => app.complain(error),
        );
    }
    try {
      const laid = await app.api.layout(graph.id, this.wanted ?? {});
      if (asked !== this.asked || graph !== app.graph) return;
      this.laid = laid;
      this.place();
    } catch (error) {
      if (asked === this.asked) app.complain(error, "no layout");
    }
  }

  /** From the layout to boxes, those that were moved where they were moved to. */
  place() {
    const { app, laid } = this;
    const graph = app.graph;
    if (!laid || !graph) return;
    const groups = new Map(app.view.groups.map((group) => [group.name, group]));
    this.bend();
    this.boxes = laid.boxes.map((/** @type {any} */ b) => {
      const group = b.kind === "group" ? groups.get(b.name) : null;
      const key = group ? `group:${group.name}` : b.ids[0];
      const moved = app.view.places[key];
      return {
        key,
        ids: b.ids,
        name: b.name,
        kind: b.kind,
        n: graph.numberOf(b.ids[0]),
        x: moved ? moved[0] : b.x,
        y: this.down(moved ? moved[1] : b.y),
        width: b.width,
        height: b.height,
        lines: b.lines,
        small: b.small_print,
        moved: Boolean(moved),
      };
    });
    this.edges = laid.edges;
    app.boxed = new Map(this.boxes.filter((b) => !b.key.startsWith("group:")).map((b) => [b.key, b.ids]));
    if (!this.zoomed) this.fit(true);
    this.draw();
  }

  /** Rows keep their height; the room between them is cut so that all of it can be read in this panel. */
  bend() {
    const { laid } = this;
    /** @type {[number, number][]} */
    const rows = [];
    const boxes = [...laid.boxes].sort((/** @type {any} */ a, /** @type {any} */ b) => a.y - b.y);
    let width = 0;
    for (const b of boxes) {
      const last = rows[rows.length - 1];
      if (last && b.y < last[1] + 4) last[1] = Math.max(last[1], b.y + b.height);
      else rows.push([b.y, b.y + b.height]);
      width = Math.max(width, b.x + b.width);
    }
    width -= Math.min(...boxes.map((/** @type {any} */ b) => b.x));
    const k = clamp((this.field.clientWidth - 28) / Math.max(1, width), 0.4, 1.3);
    const used = rows.reduce((sum, [top, bottom]) => sum + bottom - top, 0);
    const room = ((this.field.clientHeight - 34) / k - used) / Math.max(1, rows.length - 1);
    this.bends = [];
    let y = 0;
    rows.forEach(([top, bottom], i) => {
      if (i > 0) y += Math.min(top - rows[i - 1][1], Math.max(MIN_GAP, room));
      this.bends.push([top, y]);
      y += bottom - top;
      this.bends.push([bottom, y]);
    });
  }

  /** From heights of the layout to heights here, and back. @param {number} y @param {0|1} [from] */
  down(y, from = 0) {
    const { bends } = this;
    if (bends.length === 0) return y;
    const to = from === 0 ? 1 : 0;
    if (y <= bends[0][from]) return y - bends[0][from] + bends[0][to];
    for (let i = 1; i < bends.length; i++) {
      const a = bends[i - 1],
        b = bends[i];
      if (y <= b[from]) return b[from] === a[from] ? b[to] : a[to] + ((y - a[from]) * (b[to] - a[to])) / (b[from] - a[from]);
    }
    const last = bends[bends.length - 1];
    return y - last[from] + last[to];
  }

  bounds() {
    let x0 = Infinity,
      y0 = Infinity,
      x1 = -Infinity,
      y1 = -Infinity;
    for (const b of this.boxes) {
      x0 = Math.min(x0, b.x);
      y0 = Math.min(y0, b.y);
      x1 = Math.max(x1, b.x + b.width);
      y1 = Math.max(y1, b.y + b.height);
    }
    return { x: x0 - 14, y: y0 - 14, width: x1 - x0 + 28, height: y1 - y0 + 28 };
  }

  fit(always = false) {
    if (this.boxes.length === 0 || (this.zoomed && !always)) return;
    if (!always) {
      this.place();
      return;
    }
    const { clientWidth, clientHeight } = this.field;
    const b = this.bounds();
    const k = clamp(Math.min(clientWidth / b.width, clientHeight / b.height), 0.15, 1.3);
    this.zoom = { k, x: (clientWidth - b.width * k) / 2 - b.x * k, y: (clientHeight - b.height * k) / 2 - b.y * k };
    this.applyZoom();
  }

  applyZoom() {
    this.scene.setAttribute(
      "transform",
      `translate(${this.zoom.x.toFixed(1)} ${this.zoom.y.toFixed(1)}) scale(${this.zoom.k.toFixed(4)})`,
    );
  }

  /** @param {Edge} edge */
  path(edge) {
    const a = this.boxes[edge.source],
      b = this.boxes[edge.target];
    if (!a || !b) return "";
    if (!a.moved && !b.moved && edge.curve?.length) {
      return edge.curve
        .map(
          ([p0, p1, p2, p3], i) =>
            `${i === 0 ? `M${this.point(p0)}` : ""}C${this.point(p1)} ${this.point(p2)} ${this.point(p3)}`,
        )
        .join("");
    }
    const up = a.y >= b.y;
    const x0 = a.x + a.width / 2,
      y0 = up ? a.y : a.y + a.height;
    const x1 = b.x + b.width / 2,
      y1 = up ? b.y + b.height : b.y;
    const bend = Math.max(18, Math.abs(y0 - y1) * 0.45) * (up ? 1 : -1);
    return `M${r1(x0)} ${r1(y0)}C${r1(x0)} ${r1(y0 - bend)} ${r1(x1)} ${r1(y1 + bend)} ${r1(x1)} ${r1(y1)}`;
  }

  /** @param {number[]} p */
  point([x, y]) {
    return `${r1(x)} ${r1(this.down(y))}`;
  }

  draw() {
    const { app } = this;
    const graph = app.graph;
    if (!graph || this.boxes.length === 0) return;
    const focused = this.svg.contains(document.activeElement) ? this.focusKey : null;
    const clicked = app.view.clicked;
    const near = new Set([clicked]);
    const edges = this.edges.map((edge) => {
      const touched = [edge.source, edge.target].some(
        (i) => this.boxes[i]?.ids.includes(clicked ?? "\n") || app.selection.has(this.boxes[i]?.key),
      );
      const path = s("path", {
        d: this.path(edge),
        class: `edge ${edge.weight < 0 ? "minus" : "plus"}${touched ? " touched" : ""}`,
        "stroke-width": r1(clamp(edge.width, 0.6, 9)),
      });
      const a = this.boxes[edge.source],
        b = this.boxes[edge.target];
      path.append(
        s(
          "title",
          null,
          `${visible(a?.name ?? "")} → ${visible(b?.name ?? "")}: ${signed(edge.weight)}, ${percent(edge.share)} of its input`,
        ),
      );
      return path;
    });
    const boxes = this.boxes.map((box) => {
      const isClicked = box.ids.includes(clicked ?? "\n") && box.kind !== "group";
      const chosen = app.selection.has(box.key);
      const hasMember = box.kind === "group" && near.has(box.ids.find((id) => id === clicked) ?? "\n");
      const changed = this.changeOf(box);
      const label = `${box.kind === "group" ? `group of ${box.ids.length}` : box.kind} ${visible(box.name || box.lines.join(" "))}${changed ? `, ${changed.text}` : ""}`;
      const g = s(
        "g",
        {
          class: `box ${box.kind}${isClicked || hasMember ? " clicked" : ""}${chosen ? " chosen" : ""}`,
          transform: `translate(${r1(box.x)} ${r1(box.y)})`,
          role: "button",
          tabindex: box.key === (this.focusKey || this.boxes[0].key) ? "0" : "-1",
          "aria-pressed": String(chosen),
          "data-key": box.key,
        },
        s("title", null, label),
      );
      if (box.kind === "group")
        g.append(s("rect", { class: "shade", x: 3.5, y: -3.5, width: r1(box.width), height: r1(box.height), rx: 5 }));
      g.append(s("rect", { class: "face", width: r1(box.width), height: r1(box.height), rx: box.kind === "token" ? 2 : 5 }));
      box.lines.forEach((line, i) =>
        g.append(
          s(
            "text",
            { x: r1(box.width / 2), y: r1(PADDING + LINE * (i + 0.5)), class: "name", "aria-hidden": "true" },
            visible(line),
          ),
        ),
      );
      if (box.small)
        g.append(
          s(
            "text",
            {
              x: r1(box.width / 2),
              y: r1(PADDING + LINE * box.lines.length + SMALL / 2),
              class: "small",
              "aria-hidden": "true",
            },
            visible(box.small),
          ),
        );
      if (changed) {
        const w = 8 + changed.text.length * 5.4;
        g.append(
          s(
            "g",
            {
              class: `badge ${changed.sign}`,
              "aria-hidden": "true",
              transform: `translate(${r1(box.width - w / 2 + 6)} -3)`,
            },
            s("rect", { x: r1(-w / 2), y: -6.5, width: r1(w), height: 13, rx: 6.5 }),
            s("text", { x: 0, y: 0.5 }, changed.text),
          ),
        );
      }
      return g;
    });
    this.scene.replaceChildren(s("g", { class: "edges" }, edges), s("g", { class: "boxes" }, boxes));
    if (focused !== null) this.element(focused)?.focus({ preventScroll: true });
    this.showHover();
    this.showButtons();
  }

  /** What the last steering did to a box. @param {Box} box @returns {{text: string, sign: string}|null} */
  changeOf(box) {
    const run = this.app.run;
    if (!run) return null;
    const set = box.kind === "group" ? null : run.plan?.[box.key];
    if (set)
      return {
        text: set.ablate ? "off" : set.set !== undefined ? `= ${short(set.set)}` : `× ${short(set.scale)}`,
        sign: "set",
      };
    if (box.kind === "group") {
      const group = run.groups?.[box.name];
      if (!group) return null;
      const p = group.percent_after;
      if (p === null || p === undefined) return null;
      return { text: `${Math.round(p)} %`, sign: Math.abs(p - 100) < 1 ? "same" : p < 100 ? "less" : "more" };
    }
    const feature = run.features?.[box.key];
    if (feature)
      return {
        text: change(feature.before, feature.after),
        sign:
          Math.abs(feature.after - feature.before) < 0.005 * Math.abs(feature.before)
            ? "same"
            : feature.after < feature.before
              ? "less"
              : "more",
      };
    const target = run.targets?.[box.key];
    if (target)
      return {
        text: `${target.before.toFixed(2)} → ${target.after.toFixed(2)}`,
        sign: target.after < target.before ? "less" : "more",
      };
    return null;
  }

  /** @param {string} key @returns {SVGGElement|null} */
  element(key) {
    return (
      [.../** @type {NodeListOf<SVGGElement>} */ (this.scene.querySelectorAll("g.box"))].find(
        (g) => g.dataset.key === key,
      ) ?? null
    );
  }

  showHover() {
    const { graph, hover } = this.app;
    const id = graph && hover >= 0 ? graph.idOf(hover) : "\n";
    for (const g of this.scene.querySelectorAll("g.box")) {
      const box = this.boxes.find((b) => b.key === /** @type {SVGGElement} */ (g).dataset.key);
      g.classList.toggle("hovered", Boolean(box?.ids.includes(id)));
    }
  }

  showScores() {
    const { scores, graph, view } = this.app;
    if (!scores || !graph) {
      fill(this.scores);
      return;
    }
    const outside = view.pinned.filter((id) => !graph.cut.has[graph.numberOf(id)]).length;
    const whole = graph.header.scores ?? {};
    fill(
      this.scores,
      h(
        "span",
        { title: "Replacement and completeness of the pinned part; in brackets those of the whole graph" },
        `${view.pinned.length} pinned explain `,
        h("b", null, `repl ${three(scores.replacement)}`),
        ` (${three(whole.replacement)})  `,
        h("b", null, `compl ${three(scores.completeness)}`),
        ` (${three(whole.completeness)})`,
        outside > 0 && h("span", { class: "warn" }, `  ${outside} of them outside these thresholds`),
      ),
    );
  }

  showButtons() {
    const { app } = this;
    const keys = [...app.selection];
    const groups = keys.filter((key) => key.startsWith("group:"));
    const set = (/** @type {HTMLButtonElement} */ b, /** @type {boolean} */ on) => {
      b.disabled = !on;
    };
    set(this.buttons.group, app.members(keys).length >= 2);
    set(this.buttons.ungroup, groups.length > 0);
    set(this.buttons.rename, keys.length === 1);
    set(this.buttons.unpin, keys.length > 0);
    set(this.buttons.auto, Boolean(app.graph));
    set(this.buttons.tidy, Object.keys(app.view.places).length > 0);
    set(this.buttons.undo, app.store.past.length > 0);
    set(this.buttons.redo, app.store.future.length > 0);
    if (app.view.pinned.length === 0) fill(this.scores);
  }

  ungroup() {
    for (const key of [...this.app.selection]) if (key.startsWith("group:")) this.app.ungroup(key.slice(6));
  }

  rename() {
    const [key] = this.app.selection;
    if (!key) return;
    if (key.startsWith("group:")) this.app.rename(key.slice(6));
    else if ((this.app.boxed.get(key)?.length ?? 1) > 1)
      toast("This box holds several nodes: group them (G) to give them one name.");
    else this.app.editLabel(this.app.graph?.numberOf(key) ?? -1);
  }

  unpin() {
    const gone = new Set(this.app.members(this.app.selection));
    this.app.select([]);
    this.app.store.set((view) => ({ pinned: view.pinned.filter((id) => !gone.has(id)) }));
  }

  listen() {
    const { svg, app } = this;
    /** @type {{x: number, y: number, box: Box|null, start: [number, number], moved: boolean}|null} */
    let drag = null;
    const boxOf = (/** @type {Event} */ event) => {
      const g = /** @type {Element} */ (event.target).closest("g.box");
      return g ? (this.boxes.find((b) => b.key === /** @type {SVGGElement} */ (g).dataset.key) ?? null) : null;
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const box = boxOf(event);
      drag = {
        x: event.clientX,
        y: event.clientY,
        box,
        start: box ? [box.x, box.y] : [this.zoom.x, this.zoom.y],
        moved: false,
      };
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!drag) {
        if (!event.shiftKey) app.setHover(boxOf(event)?.n ?? -1);
        return;
      }
      const dx = event.clientX - drag.x,
        dy = event.clientY - drag.y;
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      drag.moved = true;
      if (drag.box) {
        const { k } = this.zoom;
        const box = drag.box;
        const to = /** @type {[number, number]} */ ([
          snap(drag.start[0] + dx / k),
          snap(this.down(drag.start[1] + dy / k, 1)),
        ]);
        this.zoomed = true;
        app.store.set((view) => ({ places: { ...view.places, [box.key]: to } }), `drag ${box.key} ${drag?.x} ${drag?.y}`);
      } else {
        this.zoomed = true;
        this.zoom.x = drag.start[0] + dx;
        this.zoom.y = drag.start[1] + dy;
        this.applyZoom();
      }
    });
    svg.addEventListener("pointerup", (event) => {
      const was = drag;
      drag = null;
      if (!was || was.moved) return;
      if (was.box) this.pick(was.box, event);
      else {
        app.select([]);
        app.choose(null);
      }
    });
    svg.addEventListener("pointercancel", () => {
      drag = null;
    });
    svg.addEventListener("pointerleave", (event) => {
      if (!event.shiftKey) app.setHover(-1);
    });
    svg.addEventListener("dblclick", (event) => {
      const box = boxOf(event);
      if (!box) {
        this.zoomed = false;
        this.fit(true);
        return;
      }
      app.select([box.key]);
      this.rename();
    });
    svg.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const rect = svg.getBoundingClientRect();
        const x = event.clientX - rect.left,
          y = event.clientY - rect.top;
        const k = clamp(this.zoom.k * Math.exp(-clamp(event.deltaY, -240, 240) / 320), 0.1, 5);
        this.zoom = { k, x: x - ((x - this.zoom.x) * k) / this.zoom.k, y: y - ((y - this.zoom.y) * k) / this.zoom.k };
        this.zoomed = true;
        this.applyZoom();
      },
      { passive: false },
    );
    svg.addEventListener("focusin", (event) => {
      const box = boxOf(event);
      if (!box) return;
      this.focusKey = box.key;
      if (box.n >= 0) app.setHover(box.n);
    });
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  /** @param {Box} box @param {MouseEvent|KeyboardEvent} event */
  pick(box, event) {
    const { app } = this;
    this.focusKey = box.key;
    if (app.gathering) {
      for (const id of box.ids) app.gather(id);
      return;
    }
    if (event.ctrlKey || event.metaKey) {
      for (const id of box.ids) app.togglePin(id);
      return;
    }
    if (event.shiftKey) {
      const next = new Set(app.selection);
      if (next.has(box.key)) next.delete(box.key);
      else next.add(box.key);
      app.select(next);
      return;
    }
    app.select([box.key]);
    if (box.kind !== "group") app.choose(box.ids[0]);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { app } = this;
    const box = this.boxes.find((b) => b.key === this.focusKey);
    if (!box) return;
    const step = /** @type {Record<string, [number, number]>} */ ({
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    })[event.key];
    if (step && event.altKey) {
      this.zoomed = true;
      app.store.set(
        (view) => ({ places: { ...view.places, [box.key]: [box.x + step[0] * 8, this.down(box.y + step[1] * 8, 1)] } }),
        `nudge ${box.key}`,
      );
    } else if (step) {
      const next = this.toward(box, step);
      if (next) {
        this.focusKey = next.key;
        this.draw();
        this.element(next.key)?.focus({ preventScroll: true });
      }
    } else if (event.key === "Enter") this.pick(box, event);
    else if (event.key === " ") this.pick(box, new MouseEvent("click", { shiftKey: true }));
    else if (event.key === "Delete" || event.key === "Backspace") {
      if (app.selection.size === 0) app.select([box.key]);
      this.unpin();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {Box} from @param {[number, number]} step */
  toward(from, [dx, dy]) {
    let best = null;
    let least = Infinity;
    for (const b of this.boxes) {
      if (b === from) continue;
      const vx = b.x + b.width / 2 - from.x - from.width / 2,
        vy = b.y + b.height / 2 - from.y - from.height / 2;
      const along = vx * dx + vy * dy;
      if (along <= 1) continue;
      const cost = along + 2.2 * Math.abs(vx * dy + vy * dx);
      if (cost < least) {
        least = cost;
        best = b;
      }
    }
    return best;
  }

  // -- pictures and files -----------------------------------------------------------------------------------------------

  /** The drawing as a file of its own: what styles say is written into it. */
  standalone() {
    const b = this.bounds();
    const svg = s("svg", {
      viewBox: `${r1(b.x)} ${r1(b.y)} ${r1(b.width)} ${r1(b.height)}`,
      width: String(Math.ceil(b.width)),
      height: String(Math.ceil(b.height)),
    });
    const from = [this.scene, ...this.scene.querySelectorAll("*")];
    const copy = /** @type {SVGGElement} */ (this.scene.cloneNode(true));
    copy.removeAttribute("transform");
    const to = [copy, ...copy.querySelectorAll("*")];
    const shape = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray"];
    /** @type {Record<string, string[]>} */
    const wanted = {
      path: shape,
      rect: shape,
      text: ["fill", "opacity", "font-size", "font-weight", "font-family", "text-anchor", "dominant-baseline"],
    };
    to.forEach((element, i) => {
      const style = getComputedStyle(from[i]);
      for (const name of wanted[element.localName] ?? []) element.setAttribute(name, style.getPropertyValue(name));
      for (const name of ["class", "tabindex", "role", "aria-label", "aria-pressed", "aria-hidden", "data-key"])
        element.removeAttribute(name);
    });
    const background = getComputedStyle(document.documentElement).getPropertyValue("--panel").trim();
    svg.append(s("rect", { x: r1(b.x), y: r1(b.y), width: r1(b.width), height: r1(b.height), fill: background }), copy);
    return {
      text: `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(svg)}\n`,
      width: b.width,
      height: b.height,
    };
  }

  /** @param {string} ending */
  fileName(ending) {
    return `${(this.app.graph?.id ?? "circuit").replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 80)}-circuit.${ending}`;
  }

  exportSvg() {
    if (this.boxes.length === 0) {
      toast("Pin something first: the picture is of the circuit.");
      return;
    }
    download(this.fileName("svg"), new Blob([this.standalone().text], { type: "image/svg+xml" }));
  }

  exportPng() {
    if (this.boxes.length === 0) {
      toast("Pin something first: the picture is of the circuit.");
      return;
    }
    const { text, width, height } = this.standalone();
    const image = new Image();
    image.onload = () => {
      const canvas = h("canvas", { width: String(Math.ceil(width * 2)), height: String(Math.ceil(height * 2)) });
      const c = canvas.getContext("2d");
      c?.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => {
        if (blob) download(this.fileName("png"), blob);
      }, "image/png");
    };
    image.onerror = () => toast("The picture could not be drawn.", { kind: "error" });
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  /** The graph's JSON with this view as its `qParams`, saved or not. */
  async exportJson() {
    const { app } = this;
    if (!app.graph) return;
    try {
      const response = await fetch(app.api.exportUrl(app.graph.id, "json"));
      if (!response.ok) throw new Error(`the server answers ${response.status}`);
      const json = await response.json();
      const params = writeParams(app.view);
      json.qParams = {
        ...json.qParams,
        pinnedIds: app.view.pinned,
        hiddenIds: app.view.hidden,
        clickedId: app.view.clicked ?? "",
        supernodes: app.view.groups.map((g) => [g.name, ...g.ids]),
        clerps: Object.entries(app.view.labels),
        layout: params.layout ?? "",
        note: app.view.note,
      };
      download(`${app.graph.id}.json`, new Blob([JSON.stringify(json)], { type: "application/json" }));
    } catch (error) {
      app.complain(error, "not exported");
    }
  }
}

/** @param {number} x */
const r1 = (x) => Math.round(x * 10) / 10;
/** @param {number} x */
const snap = (x) => Math.round(x / GRID) * GRID;
/** @param {number} x */
const short = (x) => String(Number(x.toPrecision(3))).replace("-", "\u2212");
/** @param {number|null|undefined} x */
const three = (x) => (x === null || x === undefined ? "–" : x.toFixed(3));
