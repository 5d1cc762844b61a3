// The link graph: tokens along x, layers up, targets on top. Four canvases: axes, links (the strongest of the cut, drawn
// once), nodes, and what changes with the pointer.

import { h, onFrame } from "./dom.js";
import { HitGrid } from "./grid.js";
import { Places } from "./places.js";
import { clamp, count, linkStrength, num, percent, probability, shorten, visible } from "./scale.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./graph.js").Graph} Graph */

const LEFT = 34,
  RIGHT = 12,
  TOP = 22,
  BOTTOM = 34;
const HIT_RADIUS = 30;
const MAX_ZOOM = 24;
const FAST_LINKS = 300;

export class LinkGraph {
  /**
   * @param {HTMLElement} host @param {App} app
   * @param {{graph: () => Graph|null, label: string, secondary?: boolean, mark?: (n: number) => string|null, twin?: () => number}} options
   *   `mark`: colour of a node's ring in a comparison; `twin`: a node to show as hovered
   */
  constructor(host, app, options) {
    this.app = app;
    this.options = options;
    this.host = host;
    this.layers = ["axes", "links", "nodes", "over"].map((name) =>
      h("canvas", { class: `layer ${name}`, "aria-hidden": "true" }),
    );
    this.tip = h("div", { class: "tip", hidden: true });
    this.corner = h("div", { class: "corner" });
    this.mini = h("canvas", { class: "minimap", width: "120", height: "72", hidden: true, "aria-hidden": "true" });
    this.box = h(
      "div",
      { class: "plot", tabindex: "0", role: "application", "aria-label": options.label, "aria-roledescription": "graph" },
      ...this.layers,
      this.mini,
      this.corner,
      this.tip,
    );
    host.append(this.box);
    this.zoom = { k: 1, x: 0, y: 0 };
    this.size = { width: 0, height: 0 };
    /** @type {number[]} */
    this.shown = [];
    /** @type {Places|null} */
    this.places = null;
    /** @type {HitGrid|null} */
    this.hits = null;
    this.drawAll = onFrame(() => {
      this.drawLinks(false);
      this.drawNodes();
      this.drawOver();
    });
    this.drawMoved = onFrame(() => {
      this.drawLinks(true);
      this.drawNodes();
      this.drawOver();
    });
    this.drawOverSoon = onFrame(() => this.drawOver());
    this.settle = 0;
    new ResizeObserver(() => this.resize()).observe(this.box);
    this.listen();
  }

  get graph() {
    return this.options.graph();
  }

  listen() {
    const box = this.box;
    /** @type {{x: number, y: number, moved: boolean}|null} */
    let drag = null;
    box.addEventListener("pointermove", (event) => {
      if (drag) {
        const dx = event.clientX - drag.x,
          dy = event.clientY - drag.y;
        if (drag.moved || Math.hypot(dx, dy) > 4) {
          drag.moved = true;
          box.classList.add("panning");
          this.zoom.x += dx;
          this.zoom.y += dy;
          drag.x = event.clientX;
          drag.y = event.clientY;
          this.moved();
        }
        return;
      }
      if (event.shiftKey) return;
      this.hovered(this.at(event));
    });
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      drag = { x: event.clientX, y: event.clientY, moved: false };
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointerup", (event) => {
      const was = drag;
      drag = null;
      box.classList.remove("panning");
      if (was && !was.moved) this.pick(this.at(event), event);
    });
    box.addEventListener("pointercancel", () => {
      drag = null;
      box.classList.remove("panning");
    });
    box.addEventListener("pointerleave", (event) => {
      if (!event.shiftKey) this.hovered(-1);
    });
    box.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const { x, y } = this.local(event);
        const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
        this.zoomBy(Math.exp(-clamp(pixels, -240, 240) / 500), x, y);
      },
      { passive: false },
    );
    box.addEventListener("dblclick", (event) => {
      if (this.at(event) < 0) this.resetZoom();
    });
  }

  /** @param {number} n */
  hovered(n) {
    if (this.options.secondary) this.app.tell("hover", { other: n });
    else this.app.setHover(n);
  }

  /** @param {number} n @param {MouseEvent} event */
  pick(n, event) {
    if (this.options.secondary) this.app.tell("hover", { other: n, picked: true });
    else this.app.click(n, event);
  }

  /** @param {MouseEvent} event */
  local(event) {
    const rect = this.box.getBoundingClientRect();
    return { x: event.clientX - rect.left, y: event.clientY - rect.top };
  }

  /** The node under the pointer. @param {MouseEvent} event */
  at(event) {
    const { x, y } = this.local(event);
    const [px, py] = this.toPlot(x, y);
    return this.hits ? this.hits.nearest(px, py, HIT_RADIUS / this.zoom.k) : -1;
  }

  /** @param {number} x @param {number} y @returns {[number, number]} */
  toPlot(x, y) {
    return [(x - LEFT - this.zoom.x) / this.zoom.k, (y - TOP - this.zoom.y) / this.zoom.k];
  }

  /** Place of a node on the screen. @param {number} n @returns {[number, number]} */
  where(n) {
    const places = /** @type {Places} */ (this.places);
    return [LEFT + this.zoom.x + places.x[n] * this.zoom.k, TOP + this.zoom.y + places.y[n] * this.zoom.k];
  }

  /** @param {number} factor @param {number} [x] @param {number} [y] the point that stays */
  zoomBy(factor, x = this.size.width / 2, y = this.size.height / 2) {
    const k = clamp(this.zoom.k * factor, 1, MAX_ZOOM);
    const [px, py] = this.toPlot(x, y);
    this.zoom = { k, x: x - LEFT - px * k, y: y - TOP - py * k };
    this.moved();
  }

  resetZoom() {
    this.zoom = { k: 1, x: 0, y: 0 };
    this.moved();
  }

  /** Brings a node into sight. @param {number} n */
  reveal(n) {
    if (!this.places || n < 0 || !Number.isFinite(this.places.x[n])) return;
    const [x, y] = this.where(n);
    const { width, height } = this.size;
    if (x >= LEFT && x <= width - RIGHT && y >= TOP && y <= height - BOTTOM) return;
    this.zoom.x += width / 2 - x;
    this.zoom.y += height / 2 - y;
    this.moved();
  }

  moved() {
    const { k } = this.zoom;
    const { width, height } = this.plot();
    this.zoom.x = clamp(this.zoom.x, width * (1 - k), 0);
    this.zoom.y = clamp(this.zoom.y, height * (1 - k), 0);
    this.drawMoved();
    clearTimeout(this.settle);
    this.settle = window.setTimeout(() => this.drawLinks(false), 140);
  }

  plot() {
    return { width: Math.max(40, this.size.width - LEFT - RIGHT), height: Math.max(40, this.size.height - TOP - BOTTOM) };
  }

  resize() {
    const { clientWidth, clientHeight } = this.box;
    if (clientWidth === this.size.width && clientHeight === this.size.height) return;
    this.size = { width: clientWidth, height: clientHeight };
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    for (const canvas of this.layers) {
      canvas.width = Math.max(1, Math.round(clientWidth * ratio));
      canvas.height = Math.max(1, Math.round(clientHeight * ratio));
      canvas.getContext("2d")?.setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.update();
  }

  /** What is shown has changed: another graph, cut or filter. */
  update() {
    const graph = this.graph;
    const { app } = this;
    if (!graph || this.size.width === 0) {
      this.shown = [];
      this.places = null;
      this.hits = null;
      this.drawAll();
      return;
    }
    const secondary = this.options.secondary;
    const view = app.view;
    const keep = secondary ? new Set() : new Set(view.pinned.map((id) => graph.numberOf(id)));
    if (!secondary && app.clicked >= 0) keep.add(app.clicked);
    const hidden = secondary ? new Set() : new Set(view.hidden.map((id) => graph.numberOf(id)));
    this.shown = [];
    for (const n of graph.cut.nodes) {
      if (hidden.has(n)) continue;
      if (secondary || !app.filtered || keep.has(n) || app.passes(n)) this.shown.push(n);
    }
    for (const n of keep) if (n >= 0 && !graph.cut.has[n]) this.shown.push(/** @type {number} */ (n));
    const { width, height } = this.plot();
    this.places = new Places(graph, this.shown, width, height);
    this.hits = new HitGrid(this.places.x, this.places.y, this.shown);
    this.colors();
    this.drawAll();
    const { cut } = graph;
    const drawn = cut.weight.length;
    const of = cut.info.of_whole;
    const links =
      drawn < cut.nLinks
        ? `${count(drawn)} of ${count(cut.nLinks)} links = ${percent(cut.weightShown)} of the weight`
        : `all ${count(cut.nLinks)} links`;
    const scores = of ? ` · explains repl ${of.replacement.toFixed(3)} compl ${of.completeness.toFixed(3)}` : "";
    this.corner.textContent = `${count(cut.nodes.length)} nodes · ${links}${scores}`;
  }

  colors() {
    const style = getComputedStyle(document.documentElement);
    const get = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    this.color = {
      ink: get("--ink"),
      muted: get("--muted"),
      faint: get("--faint"),
      line: get("--line"),
      panel: get("--panel"),
      plus: get("--plus"),
      minus: get("--minus"),
      accent: get("--accent"),
      pin: get("--pin"),
      node: get("--node"),
      band: get("--band"),
      font: getComputedStyle(document.body).fontFamily,
    };
  }

  /** @param {number} which */
  begin(which) {
    const c = /** @type {CanvasRenderingContext2D} */ (this.layers[which].getContext("2d"));
    c.clearRect(0, 0, this.size.width, this.size.height);
    return c;
  }

  /** @param {CanvasRenderingContext2D} c */
  clip(c) {
    c.save();
    c.beginPath();
    c.rect(LEFT - 8, TOP - 8, this.size.width - LEFT - RIGHT + 16, this.size.height - TOP - BOTTOM + 16);
    c.clip();
  }

  /** @param {CanvasRenderingContext2D} c @param {number} a @param {number} b */
  curve(c, a, b) {
    const [x0, y0] = this.where(a);
    const [x1, y1] = this.where(b);
    c.moveTo(x0, y0);
    if (Math.abs(x1 - x0) < 2) {
      c.lineTo(x1, y1);
      return;
    }
    const bend = (y0 - y1) * 0.45;
    c.bezierCurveTo(x0, y0 - bend, x1, y1 + bend, x1, y1);
  }

  /** @param {boolean} fast the strongest only, while things move */
  drawLinks(fast) {
    const c = this.begin(1);
    const { graph, places, color } = this;
    if (!graph || !places || !color) return;
    this.clip(c);
    const { source, target, weight } = graph.cut;
    const n = fast ? Math.min(FAST_LINKS, weight.length) : weight.length;
    const largest = n > 0 ? Math.abs(weight[0]) : 1;
    const STEPS = 8;
    /** @type {number[][]} */
    const buckets = Array.from({ length: STEPS * 2 }, () => []);
    for (let i = 0; i < n; i++) {
      if (!Number.isFinite(places.x[source[i]]) || !Number.isFinite(places.x[target[i]])) continue;
      const step = Math.min(STEPS - 1, Math.floor(linkStrength(weight[i], largest) * STEPS));
      buckets[step * 2 + (weight[i] < 0 ? 1 : 0)].push(i);
    }
    // Many strong links make each fainter, so that a dense graph does not become a blot.
    const ink = buckets.reduce((sum, bucket, key) => sum + (bucket.length * (Math.floor(key / 2) + 0.5)) / STEPS, 0);
    const crowd = clamp(240 / ink, 0.2, 1);
    buckets.forEach((bucket, key) => {
      if (bucket.length === 0) return;
      const strength = (Math.floor(key / 2) + 0.5) / STEPS;
      c.beginPath();
      for (const i of bucket) this.curve(c, source[i], target[i]);
      c.strokeStyle = key % 2 ? color.minus : color.plus;
      c.globalAlpha = (0.08 + 0.42 * strength) * crowd;
      c.lineWidth = 0.5 + 2.2 * strength * strength * crowd;
      c.stroke();
    });
    c.restore();
    c.globalAlpha = 1;
  }

  /** @param {number} n */
  radius(n) {
    const share = /** @type {Graph} */ (this.graph).cut.share[n];
    return (2.1 + 4.2 * Math.sqrt(clamp(share, 0, 1))) * Math.min(1.7, Math.sqrt(this.zoom.k));
  }

  /** @param {CanvasRenderingContext2D} c @param {number} n @param {number} x @param {number} y @param {number} r */
  shape(c, n, x, y, r) {
    c.beginPath();
    switch (/** @type {Graph} */ (this.graph).kind[n]) {
      case 0:
        c.arc(x, y, r, 0, 2 * Math.PI);
        break;
      case 1:
        c.moveTo(x, y - r * 1.25);
        c.lineTo(x + r * 1.25, y);
        c.lineTo(x, y + r * 1.25);
        c.lineTo(x - r * 1.25, y);
        c.closePath();
        break;
      default:
        c.rect(x - r, y - r, 2 * r, 2 * r);
    }
  }

  drawNodes() {
    this.drawAxes();
    const c = this.begin(2);
    const { graph, places, color } = this;
    if (!graph || !places || !color) return;
    const { width, height } = this.size;
    this.clip(c);
    const mark = this.options.mark;
    const app = this.app;
    const pinned = this.options.secondary ? new Set() : new Set(app.view.pinned.map((id) => graph.numberOf(id)));
    c.lineWidth = 1;
    for (let i = this.shown.length - 1; i >= 0; i--) {
      const n = this.shown[i];
      const [x, y] = this.where(n);
      if (x < LEFT - 20 || x > width + 20 || y < -20 || y > height) continue;
      const r = this.radius(n);
      this.shape(c, n, x, y, r);
      const kind = graph.kind[n];
      if (kind === 1) {
        c.globalAlpha = graph.cut.has[n] ? 0.9 : 0.5;
        c.fillStyle = color.panel;
        c.fill();
        c.strokeStyle = color.muted;
        c.stroke();
      } else {
        c.globalAlpha = graph.cut.has[n] ? clamp(0.45 + 0.55 * Math.sqrt(graph.cut.share[n]), 0.45, 1) : 0.35;
        c.fillStyle = kind === 0 ? color.node : color.ink;
        c.fill();
      }
      c.globalAlpha = 1;
      const ring = mark?.(n);
      if (ring) {
        c.strokeStyle = ring;
        c.lineWidth = 2;
        this.shape(c, n, x, y, r + 1);
        c.stroke();
        c.lineWidth = 1;
      }
      if (pinned.has(n)) {
        c.strokeStyle = color.pin;
        c.lineWidth = 2;
        this.shape(c, n, x, y, r + 2.2);
        c.stroke();
        c.lineWidth = 1;
      }
    }
    this.drawLabels(c, pinned);
    c.restore();
    this.drawMini();
  }

  drawAxes() {
    const c = this.begin(0);
    const { graph, places, color, zoom } = this;
    if (!graph || !places || !color) return;
    const { width, height } = this.size;
    const bottom = height - BOTTOM;
    c.font = `11px ${color.font}`;
    c.textBaseline = "middle";
    // Rows: every layer's number where there is room for it.
    const rowHeight = places.rowHeight * zoom.k;
    const every = Math.max(1, Math.ceil(13 / rowHeight));
    const rows = graph.nLayers + 2;
    c.save();
    c.beginPath();
    c.rect(0, TOP - 8, width, bottom - TOP + 16);
    c.clip();
    for (let row = 0; row < rows; row++) {
      const y0 = TOP + zoom.y + (this.plot().height - (row + 1) * places.rowHeight) * zoom.k;
      if (row % 2 === 1) {
        c.fillStyle = color.band;
        c.fillRect(LEFT - 6, y0, width - LEFT - RIGHT + 12, rowHeight);
      }
      const isLayer = row > 0 && row < rows - 1;
      if (isLayer && (row - 1) % every !== 0) continue;
      if (!isLayer && rowHeight < 9) continue;
      c.fillStyle = color.muted;
      c.textAlign = "right";
      c.fillText(row === 0 ? "tok" : isLayer ? String(row - 1) : "out", LEFT - 11, y0 + rowHeight / 2);
    }
    c.restore();
    // Tokens, between hairlines.
    c.save();
    c.beginPath();
    c.rect(LEFT - 6, 0, width - LEFT - RIGHT + 12, height);
    c.clip();
    for (let p = 0; p < graph.tokens.length; p++) {
      const x0 = LEFT + zoom.x + places.start[p] * zoom.k;
      const x1 = LEFT + zoom.x + places.start[p + 1] * zoom.k;
      if (x1 < LEFT || x0 > width - RIGHT) continue;
      if (p > 0) {
        c.strokeStyle = color.line;
        c.lineWidth = 1;
        c.beginPath();
        c.moveTo(Math.round(x0) + 0.5, TOP);
        c.lineTo(Math.round(x0) + 0.5, bottom + 22);
        c.stroke();
      }
      // The name of a column stays in sight as long as a part of the column is.
      const left = Math.max(x0, LEFT - 4),
        right = Math.min(x1, width - RIGHT + 4);
      const room = right - left - 6;
      if (room < 8) continue;
      c.fillStyle = color.ink;
      c.textAlign = "center";
      this.text(c, visible(graph.tokens[p]).trim() || "␣", (left + right) / 2, bottom + 13, room);
      if (room > 14) {
        c.fillStyle = color.faint;
        c.font = `9px ${color.font}`;
        c.fillText(String(p), (left + right) / 2, bottom + 26);
        c.font = `11px ${color.font}`;
      }
    }
    c.restore();
  }

  /** Names of the strongest nodes, as many as fit without touching. @param {CanvasRenderingContext2D} c @param {Set<number>} pinned */
  drawLabels(c, pinned) {
    const graph = /** @type {Graph} */ (this.graph);
    const color = /** @type {NonNullable<LinkGraph["color"]>} */ (this.color);
    const { width, height } = this.size;
    c.textBaseline = "middle";
    const weight = (/** @type {number} */ n) => (graph.kind[n] === 3 ? 3 : pinned.has(n) ? 2 : 0) + graph.cut.share[n];
    const best = Math.max(...graph.header.targets.map((/** @type {any} */ t) => t.probability ?? 1));
    const wanted = this.shown
      .filter(
        (n) =>
          (graph.kind[n] === 3 && !(graph.probability[n] < Math.min(0.05, best))) ||
          (graph.kind[n] === 0 && (pinned.has(n) || graph.cut.share[n] > 0.04 / this.zoom.k)),
      )
      .sort((a, b) => weight(b) - weight(a))
      .slice(0, 80);
    /** @type {[number, number, number, number][]} */
    const boxes = [];
    for (const n of this.shown) {
      if (this.shown.length > 800 && graph.cut.share[n] < 0.1 && graph.kind[n] !== 3) continue;
      const [x, y] = this.where(n);
      const r = this.radius(n);
      boxes.push([x - r, y - r, x + r, y + r]);
    }
    let placed = 0;
    for (const n of wanted) {
      if (placed >= 26) break;
      const name =
        graph.kind[n] === 3
          ? visible(graph.name(n)).trim() + (graph.probability[n] > 0 ? `  ${probability(graph.probability[n])}` : "")
          : graph.label(n);
      if (!name) continue;
      const [x, y] = this.where(n);
      if (x < LEFT || x > width - RIGHT || y < TOP - 4 || y > height - BOTTOM) continue;
      c.font = graph.kind[n] === 3 || pinned.has(n) ? `600 11px ${color.font}` : `11px ${color.font}`;
      const text = shorten(visible(name), 22);
      const w = c.measureText(text).width;
      const r = this.radius(n) + 4;
      const tries = /** @type {[number, number][]} */ ([
        [x + r, y],
        [x - r - w, y],
        [x - w / 2, y - r - 6],
        [x - w / 2, y + r + 7],
      ]);
      for (const [left, middle] of tries) {
        const rect = /** @type {[number, number, number, number]} */ ([left - 2, middle - 6.5, left + w + 2, middle + 6.5]);
        if (rect[0] < LEFT - 6 || rect[2] > width - 4 || rect[1] < TOP - 5) continue;
        const own = [x - r, y - r, x + r, y + r];
        if (
          boxes.some(
            (b) =>
              (b[0] !== own[0] + 4 || b[1] !== own[1] + 4) &&
              rect[0] < b[2] &&
              rect[2] > b[0] &&
              rect[1] < b[3] &&
              rect[3] > b[1],
          )
        )
          continue;
        boxes.push(rect);
        c.textAlign = "left";
        c.strokeStyle = color.panel;
        c.lineWidth = 3;
        c.lineJoin = "round";
        c.globalAlpha = 0.85;
        c.strokeText(text, left, middle);
        c.globalAlpha = 1;
        c.fillStyle = graph.kind[n] === 3 ? color.ink : pinned.has(n) ? color.pin : color.muted;
        c.fillText(text, left, middle);
        placed++;
        break;
      }
    }
    c.lineWidth = 1;
  }

  /** Text cut to its room. @param {CanvasRenderingContext2D} c @param {string} text @param {number} x @param {number} y @param {number} room */
  text(c, text, x, y, room) {
    let shown = text;
    if (c.measureText(shown).width > room) {
      const all = Array.from(text);
      let keep = Math.max(1, Math.floor((all.length * room) / c.measureText(text).width) - 1);
      while (keep > 1 && c.measureText(all.slice(0, keep).join("") + "…").width > room) keep--;
      shown = all.slice(0, keep).join("") + (keep < all.length ? "…" : "");
    }
    c.fillText(shown, x, y);
  }

  drawOver() {
    const c = this.begin(3);
    const { graph, places, color, app } = this;
    const secondary = this.options.secondary;
    const hover = secondary ? (this.options.twin?.() ?? -1) : app.hover;
    const clicked = secondary ? -1 : app.clicked;
    const focus = !secondary && (clicked >= 0 || app.trail.length > 0);
    this.layers[1].classList.toggle("dimmed", focus);
    if (!graph || !places || !color) {
      this.tip.hidden = true;
      return;
    }
    this.clip(c);
    const pinned = secondary ? [] : app.view.pinned.map((id) => graph.numberOf(id)).filter((n) => n >= 0);
    const isPinned = new Set(pinned);
    // Links between pinned nodes are always there, faint.
    for (const n of pinned) {
      const links = graph.links.get(n);
      if (links)
        for (const link of links.inputs.links)
          if (isPinned.has(link.n)) this.stroke(c, link.n, n, link.weight, link.share, 0.45);
    }
    for (const path of app.trail) {
      if (secondary) break;
      c.strokeStyle = color.accent;
      c.globalAlpha = clamp(1 - app.trail.indexOf(path) * 0.08, 0.35, 1);
      c.lineWidth = app.trail.length === 1 ? 3 : 2;
      c.beginPath();
      for (let i = 1; i < path.length; i++)
        if (Number.isFinite(places.x[path[i - 1]]) && Number.isFinite(places.x[path[i]]))
          this.curve(c, path[i - 1], path[i]);
      c.stroke();
      c.globalAlpha = 1;
      for (const n of path) this.ring(c, n, color.accent, 2, 2);
    }
    if (clicked >= 0) {
      this.spokes(c, graph, clicked, 1);
      this.ring(c, clicked, color.ink, 2.4, 3);
    }
    if (hover >= 0 && hover !== clicked) {
      if (!secondary) {
        const links = graph.linksOf(hover);
        if (links instanceof Promise)
          links
            .then(() => {
              if (app.hover === hover) this.drawOverSoon();
            })
            .catch(() => {});
        else this.spokes(c, graph, hover, clicked >= 0 ? 0.55 : 0.9);
      }
      this.ring(c, hover, color.ink, 1.6, 3);
    }
    if (!secondary && app.gathering) for (const id of app.gathering) this.ring(c, graph.numberOf(id), color.pin, 3, 4);
    c.restore();
    this.showTip(hover);
  }

  /** @param {CanvasRenderingContext2D} c @param {number} a @param {number} b @param {number} weight @param {number} share @param {number} alpha */
  stroke(c, a, b, weight, share, alpha) {
    const { places, color } = this;
    if (!places || !color || !Number.isFinite(places.x[a]) || !Number.isFinite(places.x[b])) return;
    c.beginPath();
    this.curve(c, a, b);
    c.strokeStyle = weight < 0 ? color.minus : color.plus;
    const size = Math.sqrt(clamp(share, 0, 1));
    c.globalAlpha = alpha * clamp(0.25 + size, 0.25, 1);
    c.lineWidth = 0.7 + 5 * size;
    c.stroke();
    c.globalAlpha = 1;
  }

  /** Links of one node, and the nodes at their other ends. @param {CanvasRenderingContext2D} c @param {Graph} graph @param {number} n @param {number} alpha */
  spokes(c, graph, n, alpha) {
    const links = graph.links.get(n);
    if (!links || !this.color) return;
    for (const [side, list] of /** @type {const} */ ([
      ["in", links.inputs.links],
      ["out", links.outputs.links],
    ])) {
      for (let i = list.length - 1; i >= 0; i--) {
        const link = list[i];
        this.stroke(c, side === "in" ? link.n : n, side === "in" ? n : link.n, link.weight, link.share, alpha);
      }
      for (const link of list) {
        if (!this.places || !Number.isFinite(this.places.x[link.n])) continue;
        const [x, y] = this.where(link.n);
        this.shape(c, link.n, x, y, this.radius(link.n) + 0.4);
        c.fillStyle = link.weight < 0 ? this.color.minus : this.color.plus;
        c.globalAlpha = clamp(0.35 + 1.6 * Math.sqrt(link.share), 0.35, 1);
        c.fill();
        c.globalAlpha = 1;
      }
    }
  }

  /** @param {CanvasRenderingContext2D} c @param {number} n @param {string} color @param {number} width @param {number} gap */
  ring(c, n, color, width, gap) {
    if (!this.places || n < 0 || !Number.isFinite(this.places.x[n])) return;
    const [x, y] = this.where(n);
    this.shape(c, n, x, y, this.radius(n) + gap);
    c.strokeStyle = color;
    c.lineWidth = width;
    c.stroke();
    c.lineWidth = 1;
  }

  /** @param {number} n */
  showTip(n) {
    const { graph, tip } = this;
    if (
      !graph ||
      n < 0 ||
      !this.places ||
      !Number.isFinite(this.places.x[n]) ||
      (!this.box.matches(":hover") && !this.options.secondary && this.app.hover !== n)
    ) {
      tip.hidden = true;
      return;
    }
    const facts = [graph.idOf(n)];
    if (graph.kind[n] < 2) facts.push(`layer ${graph.layer[n]}`);
    facts.push(`at ${graph.place(n)}`);
    if (graph.kind[n] === 3 && graph.probability[n] > 0) facts.push(`p = ${probability(graph.probability[n])}`);
    else facts.push(`share ${percent(graph.cut.share[n])}`);
    if (graph.kind[n] === 0 && Number.isFinite(graph.activation[n])) facts.push(`active ${num(graph.activation[n])}`);
    tip.replaceChildren(h("strong", null, graph.shown(n)), h("span", null, facts.join(" · ")));
    tip.hidden = false;
    const [x, y] = this.where(n);
    const { width, height } = this.size;
    const w = tip.offsetWidth,
      hh = tip.offsetHeight;
    const left = x + 14 + w < width ? x + 14 : x - 14 - w;
    const top = clamp(y - hh - 8 > 0 ? y - hh - 8 : y + 12, 2, Math.max(2, height - hh - 2));
    tip.style.setProperty(
      "transform",
      `translate(${Math.round(clamp(left, 2, Math.max(2, width - w - 2)))}px, ${Math.round(top)}px)`,
    );
  }

  drawMini() {
    const { mini, graph, places, zoom, color } = this;
    mini.hidden = zoom.k < 1.05 || !graph;
    if (mini.hidden || !graph || !places || !color) return;
    const c = /** @type {CanvasRenderingContext2D} */ (mini.getContext("2d"));
    const { width, height } = this.plot();
    const sx = mini.width / width,
      sy = mini.height / height;
    c.clearRect(0, 0, mini.width, mini.height);
    c.fillStyle = color.muted;
    for (const n of this.shown) c.fillRect(places.x[n] * sx, places.y[n] * sy, 1.5, 1.5);
    c.strokeStyle = color.accent;
    c.lineWidth = 1.5;
    c.strokeRect((-zoom.x / zoom.k) * sx, (-zoom.y / zoom.k) * sy, (width / zoom.k) * sx, (height / zoom.k) * sy);
  }

  /** The next node in a direction, for the arrow keys. @param {string} key @param {number} from */
  neighbor(key, from) {
    const { graph, places } = this;
    if (!graph || !places || this.shown.length === 0) return -1;
    if (from < 0 || !Number.isFinite(places.x[from])) {
      const targets = this.shown.filter((n) => graph.kind[n] === 3);
      return (targets.length ? targets : this.shown).reduce((a, b) => (graph.cut.share[b] > graph.cut.share[a] ? b : a));
    }
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const row = this.shown
        .filter((n) => graph.row(n) === graph.row(from))
        .sort((a, b) => places.x[a] - places.x[b] || places.y[a] - places.y[b] || a - b);
      return row[row.indexOf(from) + (key === "ArrowLeft" ? -1 : 1)] ?? from;
    }
    const links = graph.links.get(from);
    const list = key === "ArrowUp" ? links?.outputs.links : links?.inputs.links;
    return list?.find((link) => Number.isFinite(places.x[link.n]))?.n ?? from;
  }
}
