// One feature: what it is called, how often and how strongly it is active, what it pushes, and where in the text.

import { traceDialog } from "./dialogs.js";
import { button, debounce, fill, h, s } from "./dom.js";
import { clamp, count, num, percent, signed, visible } from "./scale.js";

/** @typedef {import("./app.js").App} App */

const TABS = /** @type {const} */ ([
  ["top", "Examples"],
  ["weak", "Weaker"],
  ["here", "In this prompt"],
  ["try", "Own text"],
  ["near", "Reads and feeds"],
  ["site", "Neuronpedia"],
]);

export class FeaturePanel {
  /** @param {HTMLElement} host @param {App} app */
  constructor(host, app) {
    this.app = app;
    this.tab = "top";
    this.shown = "";
    this.tried = "";
    /** @type {string|undefined} */
    this.solo = undefined;
    /** @type {AbortController|undefined} */
    this.control = undefined;
    /** @type {Map<string, Promise<any>>} */
    this.known = new Map();
    this.box = h("div", { class: "feature-page scroll", tabindex: "0" });
    host.append(this.box);
    this.later = debounce(90, () => this.show());
    app.on("graph", () => {
      this.shown = "";
      this.show();
    });
    app.on("view", (now, before) => {
      if (now.clicked !== before.clicked || now.labels !== before.labels) {
        this.shown = "";
        this.show();
      }
    });
    app.on("hover", (other) => {
      if (!other) this.later();
    });
    this.show();
  }

  /** A feature apart from any graph. @param {string} key */
  open(key) {
    this.solo = key;
    this.shown = "";
    this.show();
  }

  /** @returns {{key: string|null, n: number}} the feature to show: the hovered one, else the chosen one */
  which() {
    const graph = this.app.graph;
    if (!graph) return { key: this.solo ?? null, n: -1 };
    for (const n of [this.app.hover, this.app.clicked])
      if (n >= 0 && graph.kind[n] === 0) return { key: graph.featureKey(n), n };
    const n = this.app.clicked;
    if (n >= 0) return { key: null, n };
    if (this.solo) return { key: this.solo, n: -1 };
    // Nothing is chosen: the strongest feature, so that the panel shows what it is for.
    let best = -1;
    for (const m of graph.cut.nodes)
      if (graph.kind[m] === 0 && (best < 0 || graph.cut.share[m] > graph.cut.share[best])) best = m;
    return { key: best < 0 ? null : graph.featureKey(best), n: best };
  }

  async show() {
    const { key, n } = this.which();
    const name = `${key} ${key === null ? n : (this.app.graph?.pos[n] ?? "")} ${this.tab} ${this.app.clicked}`;
    if (name === this.shown) return;
    this.shown = name;
    if (key === null) {
      this.showOther(n);
      return;
    }
    const [layer, index] = key.split("_").map(Number);
    const { health } = this.app;
    if (health && !health.features && !health.model) {
      this.draw({ layer, index, available: false }, n);
      return;
    }
    try {
      const feature = await this.load(layer, index, this.tab === "near");
      if (this.shown === name) this.draw(feature, n);
    } catch (error) {
      if (this.shown !== name) return;
      fill(
        this.box,
        h("h2", null, `Feature ${key}`),
        h("p", { class: "muted" }, error instanceof Error ? `Its page cannot be shown: ${error.message}` : ""),
      );
    }
  }

  /** @param {number} layer @param {number} index @param {boolean} neighbors */
  load(layer, index, neighbors) {
    const key = `${layer}_${index}${neighbors ? "+" : ""}`;
    let known = this.known.get(key);
    if (!known) {
      if (this.known.size > 60) this.known.delete(/** @type {string} */ (this.known.keys().next().value));
      known = this.app.api.feature(layer, index, neighbors);
      this.known.set(key, known);
      known.catch(() => this.known.delete(key));
    }
    return known;
  }

  /** @param {number} n */
  showOther(n) {
    const graph = this.app.graph;
    if (!graph || n < 0) {
      fill(
        this.box,
        h("h2", null, "Feature"),
        h("p", { class: "muted" }, graph ? "Point at a feature, or choose one, to see what it is active on." : ""),
      );
      return;
    }
    const token = visible(graph.tokens[graph.pos[n]] ?? "");
    const text =
      graph.kind[n] === 1
        ? `What the transcoder of layer ${graph.layer[n]} misses at “${token.trim()}”. Nothing explains it: much influence through errors means that the graph knows little there.`
        : graph.kind[n] === 2
          ? `The embedding of “${token.trim()}”: where paths begin.`
          : "A target: what the graph explains. Its inputs above add up to its logit.";
    fill(this.box, h("h2", null, graph.shown(n)), h("p", { class: "muted" }, text));
  }

  /** @param {any} f @param {number} n */
  draw(f, n) {
    const { app } = this;
    const graph = app.graph;
    const key = `${f.layer}_${f.index}`;
    const label = (graph && n >= 0 ? graph.label(n) : app.view.labels[key]) || f.label || "";
    const offered = TABS.filter(
      ([name]) =>
        (name !== "here" || (graph && n >= 0)) &&
        (name !== "site" || f.neuronpedia?.online) &&
        (f.available || name === "here" || name === "try" || name === "near" || name === "site"),
    );
    const current = offered.some(([name]) => name === this.tab) ? this.tab : offered[0][0];
    const tab = (/** @type {string} */ name, /** @type {string} */ text) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": String(current === name),
          onclick: () => {
            this.tab = name;
            this.shown = "";
            this.show();
          },
        },
        text,
      );
    const score = f.label_score;
    const activation = graph && n >= 0 ? graph.activation[n] : NaN;
    const head = [
      h(
        "div",
        { class: "title" },
        h("h2", null, label ? visible(label) : h("span", { class: "muted" }, "unnamed")),
        h("code", null, key),
        n >= 0 &&
          button("✎", () => app.editLabel(n), {
            class: "plain",
            "aria-label": "Edit the label",
            title: "Edit the label (E)",
          }),
        h("span", { class: "grow" }),
        n < 0 && this.steps(f),
      ),
    ];
    /** @type {(Node|null)[]} */
    const parts = [];
    if (f.neuronpedia) {
      parts.push(
        h(
          "p",
          { class: "small" },
          h(
            "a",
            { href: safeLink(f.neuronpedia.url), target: "_blank", rel: "noreferrer noopener" },
            "Neuronpedia’s page of this feature ↗",
          ),
          f.neuronpedia.warning && h("span", { class: "warn" }, ` ⚠ ${f.neuronpedia.warning}`),
        ),
      );
    }
    if (f.available) {
      parts.push(
        h(
          "div",
          { class: "facts" },
          fact(
            "active on",
            percent(f.frequency ?? (f.n_positions ? f.count / f.n_positions : null)),
            `${count(f.count)} of ${count(f.n_positions)} positions, in ${count(f.n_sequences)} sequences`,
          ),
          fact("median", num(f.median)),
          fact("99 % below", num(f.quantile_99)),
          fact("max", num(f.max)),
          Number.isFinite(activation) &&
            fact("here", `${num(activation)}`, f.max ? `${percent(activation / f.max)} of the largest` : ""),
          score?.f1 !== undefined &&
            fact(
              "label’s F1",
              Number(score.f1).toFixed(2),
              `precision ${num(score.precision)}, recall ${num(score.recall)}`,
            ),
        ),
      );
      parts.push(h("div", { class: "charts" }, histogram(f, activation), this.logits(f.weights)));
      if (f.tokens?.length)
        parts.push(
          h(
            "div",
            { class: "chips" },
            h("span", { class: "muted" }, "fires on "),
            f.tokens
              .slice(0, 8)
              .map((/** @type {any} */ t) =>
                h(
                  "span",
                  { class: "chip", title: `${count(t.count)} times, mean ${num(t.mean)}` },
                  visible(t.text),
                  h("i", null, percent(t.share)),
                ),
              ),
          ),
        );
    } else {
      parts.push(
        h(
          "p",
          { class: "muted" },
          app.health?.features
            ? "Nothing was collected for this feature."
            : "What features are active on was not collected: run “circuitscope features collect” and start the server with --features.",
        ),
        this.logits(f.weights),
      );
    }
    const tabs = h(
      "div",
      { class: "tabs", role: "tablist", "aria-label": "Examples" },
      offered.map(([name, text]) => tab(name, text)),
    );
    const body = h("div", { class: "examples" });
    fill(this.box, head, parts, tabs, body);
    this.fillTab(current, body, f, n);
    if (f.source) this.box.append(h("p", { class: "muted small source" }, f.source));
  }

  /** @param {any} f */
  steps(f) {
    const go = (/** @type {number} */ by) =>
      button(by < 0 ? "←" : "→", () => this.open(`${f.layer}_${Math.max(0, f.index + by)}`), {
        "aria-label": by < 0 ? "Previous feature" : "Next feature",
      });
    return h("span", { class: "row" }, go(-1), go(1));
  }

  /** @param {any} weights */
  logits(weights) {
    if (!weights?.top) return h("div", { class: "logits muted" }, "What it pushes needs the model.");
    const column = (/** @type {string} */ name, /** @type {any[]} */ list, /** @type {string} */ kind) =>
      h(
        "div",
        null,
        h("h3", null, name),
        list
          .slice(0, 6)
          .map((t) =>
            h(
              "div",
              { class: "logit" },
              h("span", null, visible(t.text)),
              h("b", { class: `figure ${kind}` }, signed(t.value, 2)),
            ),
          ),
      );
    return h(
      "div",
      { class: "logits" },
      column("pushes up", weights.top, "plus"),
      column("pushes down", weights.bottom, "minus"),
    );
  }

  /** @param {string} name @param {HTMLElement} body @param {any} f @param {number} n */
  async fillTab(name, body, f, n) {
    const { app } = this;
    const graph = app.graph;
    const max = f.max || 1;
    if (name === "top" || name === "weak") {
      const list = (f.examples ?? []).filter((/** @type {any} */ e) => (name === "top") === Boolean(e.is_top));
      fill(
        body,
        list.length === 0
          ? h("p", { class: "muted" }, f.available ? "No examples: it was active too rarely on this text." : "")
          : list
              .slice(0, 40)
              .map((/** @type {any} */ e) => example(e, max, app.canRun ? (text) => traceDialog(app, text) : null)),
      );
    } else if (name === "here" && graph) {
      if (!app.canRun) {
        const acts = graph.tokens.map(() => 0);
        for (const m of graph.cut.nodes)
          if (graph.featureKey(m) === `${f.layer}_${f.index}`) acts[graph.pos[m]] = graph.activation[m];
        fill(
          body,
          example({ tokens: graph.tokens, activations: acts, value: Math.max(...acts), at: graph.pos[n] }, max),
          h("p", { class: "muted small" }, "As far as the graph has it; all positions need the model."),
        );
        return;
      }
      await this.onText(body, f, graph.header.prompt, n >= 0 ? graph.pos[n] : -1);
    } else if (name === "try") {
      if (!app.canRun) {
        fill(body, h("p", { class: "muted" }, "Own text needs the model: start the server with --model and --transcoders."));
        return;
      }
      const out = h("div", { "aria-live": "polite" });
      const input = h(
        "textarea",
        {
          rows: "2",
          "aria-label": "Text to run the feature on",
          placeholder: "Any text: where is the feature active in it?",
          maxlength: "4000",
        },
        this.tried,
      );
      input.addEventListener(
        "input",
        debounce(350, () => {
          this.tried = input.value;
          if (input.value.trim()) this.onText(out, f, input.value, -1);
        }),
      );
      fill(body, input, out);
      if (this.tried) this.onText(out, f, this.tried, -1);
    } else if (name === "near") {
      const rows = (/** @type {string} */ title, /** @type {any[]|undefined} */ list) =>
        h(
          "div",
          null,
          h("h3", null, title),
          !list?.length
            ? h("p", { class: "muted" }, f.weights ? "none" : "needs the model")
            : list.slice(0, 10).map((x) => {
                const at = graph ? ([...graph.cut.nodes].find((m) => graph.featureKey(m) === x.feature) ?? -1) : -1;
                return h(
                  "div",
                  { class: "bar-row" },
                  h(
                    "button",
                    {
                      type: "button",
                      class: "pick",
                      title: at >= 0 ? "Choose it in the graph" : "Show this feature",
                      onclick: () => {
                        if (at >= 0) app.choose(graph?.idOf(at) ?? null);
                        else {
                          app.choose(null);
                          this.open(x.feature);
                        }
                      },
                    },
                    h("span", { class: `figure ${x.weight < 0 ? "minus" : "plus"}` }, signed(x.weight)),
                    h("code", null, x.feature),
                    h("span", { class: "label" }, x.label ? visible(x.label) : ""),
                    at >= 0 && h("span", { class: "muted note" }, "in this graph"),
                  ),
                );
              }),
        );
      fill(body, h("div", { class: "two-columns" }, rows("reads", f.weights?.reads), rows("feeds", f.weights?.feeds)));
    } else if (name === "site") {
      await this.onSite(body, f);
    }
  }

  /** What the site of a published set says, beside what was collected here. @param {HTMLElement} body @param {any} f */
  async onSite(body, f) {
    this.control?.abort();
    this.control = new AbortController();
    const { signal } = this.control;
    fill(body, h("p", { class: "muted" }, "Asking Neuronpedia…"));
    try {
      const found = await this.app.api.published(f.layer, f.index, signal);
      const max = found.max || Math.max(0, ...found.examples.map((/** @type {any} */ e) => e.value)) || 1;
      const list = (/** @type {string} */ name, /** @type {string[]} */ tokens) =>
        tokens.length > 0 &&
        h(
          "div",
          { class: "chips" },
          h("span", { class: "muted" }, `${name} `),
          tokens.slice(0, 8).map((token) => h("span", { class: "chip" }, visible(token))),
        );
      const { app } = this;
      fill(
        body,
        h(
          "p",
          null,
          found.label ? `“${visible(found.label)}”` : "It has no explanation there.",
          h(
            "span",
            { class: "muted small" },
            found.frequency !== null && ` active on ${percent(found.frequency)}`,
            found.max !== null && `, at most ${num(found.max)}`,
          ),
        ),
        list("pushes up", found.top),
        list("pushes down", found.bottom),
        found.examples.map((/** @type {any} */ e) =>
          example(e, max, app.canRun ? (text) => traceDialog(app, text) : null),
        ),
      );
    } catch (error) {
      if (error instanceof DOMException) return;
      fill(body, h("p", { class: "muted" }, error instanceof Error ? error.message : ""));
    }
  }

  /** @param {HTMLElement} body @param {any} f @param {string} text @param {number} at */
  async onText(body, f, text, at) {
    this.control?.abort();
    this.control = new AbortController();
    try {
      const { tokens, activations, max } = await this.app.api.onText(f.layer, f.index, text, this.control.signal);
      const largest = Math.max(0, ...activations);
      fill(
        body,
        example({ tokens, activations, at, value: largest }, max || largest || 1),
        largest === 0 && h("p", { class: "muted small" }, "Not active on this text."),
      );
    } catch (error) {
      if (error instanceof DOMException) return;
      fill(body, h("p", { class: "muted" }, error instanceof Error ? error.message : ""));
    }
  }
}

/** @param {string} name @param {string} value @param {string} [title] */
const fact = (name, value, title = "") => h("span", title ? { title } : null, `${name} `, h("b", null, value));

/** Only what is a page of the web is a link. @param {unknown} url */
function safeLink(url) {
  return typeof url === "string" && /^https:\/\//.test(url) ? url : null;
}

/**
 * Tokens in their colours.
 * @param {{tokens: string[], activations: number[], at: number, value: number}} e @param {number} max
 * @param {((text: string) => void)|null} [trace] offers a trace of the text up to its token
 */
function example(e, max, trace = null) {
  const text = e.tokens
    .slice(0, e.at + 1)
    .filter((token, i) => i > 0 || !/^<.*>$/.test(token))
    .join("")
    .trim();
  return h(
    "div",
    { class: "example" },
    h("span", { class: "figure value" }, num(e.value)),
    h(
      "span",
      { class: "text" },
      e.tokens.map((token, i) => {
        const a = e.activations[i] ?? 0;
        const raw = a > 0 ? clamp(0.12 + 0.88 * (a / max), 0.12, 1) : 0;
        // In between neither light nor dark letters could be read.
        const heat = raw > 0.45 && raw < 0.68 ? (raw < 0.56 ? 0.45 : 0.68) : raw;
        return h(
          "span",
          {
            class: `tok${i === e.at ? " at" : ""}${heat > 0.6 ? " hot" : ""}`,
            title: a > 0 ? `${visible(token)}  ${num(a)}` : null,
            style: heat > 0 ? { "--heat": heat.toFixed(3) } : null,
          },
          token.includes("\n") ? visible(token) : visible(token).replace(/\u00a0/g, " "),
        );
      }),
    ),
    trace && h("span", { class: "grow" }),
    trace && button("Trace", () => trace(text), { class: "quiet", title: "Trace this text up to the marked token" }),
  );
}

/** @param {any} f @param {number} activation */
function histogram(f, activation) {
  const bins = f.histogram ?? [];
  const W = 200,
    H = 56;
  const most = Math.max(1, ...bins.map((/** @type {any} */ b) => b.count));
  const first = bins[0]?.start ?? 0,
    last = bins[bins.length - 1]?.end ?? 1;
  // Bins are equally wide in the logarithm.
  const log = (/** @type {number} */ x) => Math.log2(Math.max(x, 1e-9));
  const x = (/** @type {number} */ v) =>
    last > first && first > 0 ? ((log(v) - log(first)) / (log(last) - log(first))) * W : (v / (last || 1)) * W;
  const bars = bins.map((/** @type {any} */ b) => {
    const left = clamp(x(b.start), 0, W),
      right = clamp(x(b.end), 0, W);
    const height = b.count > 0 ? Math.max(1.5, (b.count / most) * (H - 4)) : 0;
    return s(
      "rect",
      { x: left, y: H - height, width: Math.max(0.5, right - left - 0.7), height, class: "bin" },
      s("title", null, `${num(b.start)} to ${num(b.end)}: ${count(b.count)}`),
    );
  });
  const here = Number.isFinite(activation) && activation > 0 ? clamp(x(activation), 0, W) : null;
  return h(
    "figure",
    { class: "histogram" },
    s(
      "svg",
      {
        viewBox: `0 -2 ${W} ${H + 4}`,
        role: "img",
        "aria-label": `Histogram of activations from ${num(first)} to ${num(last)}${here !== null ? `; here ${num(activation)}` : ""}`,
        preserveAspectRatio: "none",
      },
      bars,
      s("line", { x1: 0, x2: W, y1: H, y2: H, class: "axis" }),
      here !== null && s("line", { x1: here, x2: here, y1: -2, y2: H, class: "here" }),
    ),
    h(
      "figcaption",
      null,
      h("span", null, num(first)),
      here !== null && h("span", { class: "here" }, `here ${num(activation)}`),
      h("span", null, num(last)),
    ),
  );
}
