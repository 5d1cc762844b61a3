// What if: features and groups set, scaled or switched off; what the model says then.

import { button, copy, debounce, fill, h, s, toast } from "./dom.js";
import { change, clamp, num, percent, probability, quoted, signed, ticks, visible } from "./scale.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./store.js").Change} Change */
/** @typedef {{key: string, name: string, place: {node?: string, supernode?: string}, ids: string[], activation: number, extra: boolean}} Item */

const MODES = /** @type {const} */ ([
  ["free", "Free", "Everything is computed anew"],
  ["frozen_attention", "Frozen attention", "Attention patterns are held"],
  ["frozen_norms", "Frozen attention and norms", "Patterns and norms are held: what the graph holds"],
  ["direct", "Direct effects", "All but the direct effect is held: the graph’s edges"],
  ["constrained", "Constrained layers", "MLP outputs are held in these layers"],
]);

export class WhatIf {
  /** @param {HTMLElement} host @param {App} app */
  constructor(host, app) {
    this.app = app;
    this.generate = 8;
    this.temperature = 0;
    /** @type {any} */
    this.result = null;
    /** @type {{original: string, changed: string}|null} */
    this.words = null;
    /** @type {any} */
    this.swept = null;
    /** Labels of features that were searched for. @type {Map<string, string>} */
    this.names = new Map();
    /** @type {AbortController|null} */
    this.control = null;
    /** The changes of the last run. @type {Change[]} */
    this.ran = [];
    /** @type {HTMLButtonElement|null} */
    this.sweepButton = null;
    this.items = h("div", { class: "items" });
    this.controls = h("div", { class: "controls" });
    this.out = h("div", { class: "outcome" });
    this.sweepBox = h("div", { class: "sweep" });
    this.box = h("div", { class: "whatif scroll" }, this.items, this.controls, this.out, this.sweepBox);
    host.append(this.box);
    app.on("graph", () => {
      this.control?.abort();
      this.result = null;
      this.words = null;
      this.swept = null;
      this.update();
      this.showResult();
    });
    app.on("view", (now, before) => {
      if (now.pinned !== before.pinned || now.groups !== before.groups || now.labels !== before.labels) this.update();
      else if (now.plan !== before.plan || now.mode !== before.mode) this.refresh();
    });
    app.on("health", () => this.update());
    this.update();
  }

  /** What can be changed: groups, pinned features that are in none, and what was added by hand. @returns {Item[]} */
  list() {
    const { app } = this;
    const graph = app.graph;
    if (!graph) return [];
    const { view } = app;
    const isFeature = (/** @type {string} */ id) => graph.kind[graph.numberOf(id)] === 0;
    const grouped = new Set(view.groups.flatMap((g) => g.ids));
    const activation = (/** @type {string[]} */ ids) =>
      ids.reduce((sum, id) => sum + (graph.activation[graph.numberOf(id)] || 0), 0);
    /** @type {Item[]} */
    const items = [];
    for (const group of view.groups) {
      const ids = group.ids.filter(isFeature);
      if (ids.length)
        items.push({
          key: `group:${group.name}`,
          name: group.name,
          place: { supernode: group.name },
          ids,
          activation: activation(ids),
          extra: false,
        });
    }
    for (const id of view.pinned) {
      if (!grouped.has(id) && isFeature(id))
        items.push({
          key: id,
          name: graph.name(graph.numberOf(id)),
          place: { node: id },
          ids: [id],
          activation: activation([id]),
          extra: false,
        });
    }
    const known = new Set(items.map((item) => item.key));
    for (const change of view.plan) {
      const key = change.node ?? `group:${change.supernode}`;
      if (known.has(key) || !change.node) continue;
      known.add(key);
      const n = graph.numberOf(change.node);
      const [layer, feature] = change.node.split("_");
      items.push({
        key,
        name: n >= 0 ? graph.name(n) : (this.names.get(`${layer}_${feature}`) ?? ""),
        place: { node: change.node },
        ids: [change.node],
        activation: n >= 0 ? graph.activation[n] : 0,
        extra: true,
      });
    }
    return items;
  }

  /** @param {Item} item @returns {Change|undefined} */
  planned(item) {
    return this.app.view.plan.find((c) =>
      c.node !== undefined ? c.node === item.place.node : c.supernode === item.place.supernode,
    );
  }

  /** @param {Item} item @param {Partial<Change>|null} change */
  plan(item, change) {
    this.app.store.set((view) => {
      const rest = view.plan.filter((c) =>
        c.node !== undefined ? c.node !== item.place.node : c.supernode !== item.place.supernode,
      );
      return { plan: change ? [...rest, { ...item.place, ...change }] : rest };
    });
  }

  /** The plan without groups that are gone. @returns {Change[]} */
  get changes() {
    const names = new Set(this.app.view.groups.map((g) => g.name));
    return this.app.view.plan.filter((c) => c.node !== undefined || names.has(c.supernode ?? ""));
  }

  /** Rows are kept while their sliders move. */
  refresh() {
    const keys = this.list()
      .map((item) => item.key)
      .join("\n");
    if (keys !== this.shownKeys) {
      this.update();
      return;
    }
    for (const sync of this.syncs ?? []) sync();
    this.syncControls?.();
  }

  update() {
    const { app } = this;
    const items = this.list();
    this.shownKeys = items.map((item) => item.key).join("\n");
    /** @type {(() => void)[]} */
    this.syncs = [];
    if (!app.graph) {
      fill(this.items);
      fill(this.controls);
      return;
    }
    fill(
      this.items,
      h(
        "div",
        { class: "title" },
        h("h2", null, "Change"),
        h("span", { class: "grow" }),
        button(
          "All off",
          () => {
            for (const item of this.list()) this.plan(item, { ablate: true });
          },
          { disabled: items.length === 0, title: "Switch off everything in this list" },
        ),
        button("Reset", () => {
          app.store.set({ plan: [] });
          app.run = null;
          this.result = null;
          this.words = null;
          this.showResult();
          app.tell("run");
        }),
      ),
      items.length === 0
        ? h("p", { class: "muted" }, "Pin features, or add some below: each gets a slider.")
        : items.map((item) => this.row(item)),
      this.adder(),
    );
    this.showControls();
    this.showSweep();
  }

  /** @param {Item} item */
  row(item) {
    const name = item.name ? visible(item.name) : "";
    const select = h(
      "select",
      { "aria-label": `How to change ${name || item.key}` },
      [
        ["none", "as it is"],
        ["ablate", "off"],
        ["scale", "times"],
        ["set", "set to"],
      ].map(([value, text]) => h("option", { value }, text)),
    );
    const slider = h("input", { type: "range", step: "any", "aria-label": `Value for ${name || item.key}` });
    const number = h("input", { type: "number", step: "any", "aria-label": `Exact value for ${name || item.key}` });
    const row = h(
      "div",
      { class: "item" },
      h(
        "span",
        {
          class: `label${item.extra ? " extra" : ""}`,
          title: `${item.ids.join(", ")}${item.activation ? `: ${num(item.activation)}` : ""}`,
        },
        item.place.supernode
          ? h("span", { class: "glyph group", "aria-hidden": "true" })
          : h("span", { class: "glyph small feature", "aria-hidden": "true" }),
        name,
        name && " ",
        h("code", null, item.place.node ?? `${item.ids.length}`),
      ),
      select,
      slider,
      number,
      button("×", () => this.plan(item, null), {
        class: "plain",
        "aria-label": `Leave ${name || item.key} as it is`,
        title: "As it is",
      }),
    );
    const top = Math.max(2 * Math.abs(item.activation), 20);
    const sync = () => {
      const c = this.planned(item);
      const kind = !c ? "none" : c.ablate ? "ablate" : c.set !== undefined ? "set" : "scale";
      select.value = kind;
      row.classList.toggle("changed", kind !== "none");
      const value = c?.set ?? c?.scale ?? (kind === "ablate" ? 0 : 1);
      const isSet = kind === "set";
      slider.min = isSet ? "0" : "-2";
      slider.max = String(isSet ? Math.max(top, value) : Math.max(4, value));
      if (document.activeElement !== slider) slider.value = String(value);
      if (document.activeElement !== number) number.value = kind === "none" ? "" : String(Number(value.toPrecision(4)));
      number.placeholder = item.activation && isSet ? num(item.activation) : "×1";
    };
    select.addEventListener("change", () => {
      const was = this.planned(item);
      if (select.value === "none") this.plan(item, item.extra ? { scale: 1 } : null);
      else if (select.value === "ablate") this.plan(item, { ablate: true });
      else if (select.value === "scale") this.plan(item, { scale: was?.scale ?? 0.5 });
      else this.plan(item, { set: was?.set ?? Number((item.activation || 10).toPrecision(4)) });
    });
    const take = (/** @type {number} */ value) => {
      if (!Number.isFinite(value)) return;
      const was = this.planned(item);
      this.plan(item, was?.set !== undefined ? { set: value } : { scale: value });
    };
    slider.addEventListener("input", () => {
      const value = Number(Number(slider.value).toPrecision(3));
      take(Math.abs(value - 1) < 0.04 && !this.planned(item)?.set ? 1 : value);
    });
    number.addEventListener("change", () => take(Number(number.value)));
    row.addEventListener("pointerenter", () => this.app.setHover(this.app.graph?.numberOf(item.ids[0]) ?? -1));
    this.syncs?.push(sync);
    sync();
    return row;
  }

  /** A field that takes `0_303_7=13.87, …`, or words to search features by. */
  adder() {
    const { app } = this;
    const input = h("input", {
      type: "text",
      placeholder: "Add features: 0_303_7=13.87, or a word",
      "aria-label": "Add features by id, or search by a word",
      spellcheck: "false",
      autocomplete: "off",
    });
    const found = h("div", { class: "found" });
    const add = () => {
      const parts = input.value.split(/[,\s]+/).filter(Boolean);
      const specs = parts.map((part) => /^(\d+_\d+_(?:\d+(?:\.\.\d*)?|\*))(?:=(-?\d+(?:\.\d+)?(?:e-?\d+)?))?$/.exec(part));
      if (parts.length === 0) return;
      if (specs.some((m) => m === null)) {
        search();
        return;
      }
      app.store.set((view) => {
        const names = new Set(specs.map((m) => m?.[1]));
        return {
          plan: [
            ...view.plan.filter((c) => !names.has(c.node)),
            ...specs.flatMap((m) => (m ? [{ node: m[1], set: m[2] === undefined ? 10 : Number(m[2]) }] : [])),
          ],
        };
      });
      input.value = "";
      fill(found);
    };
    const search = debounce(200, async () => {
      const q = input.value.trim();
      if (!q || /^[\d_,=.\s*-]+$/.test(q)) {
        fill(found);
        return;
      }
      try {
        const { found: list } = await app.api.searchFeatures(q);
        const graph = app.graph;
        const pos = graph ? (app.clicked >= 0 ? graph.pos[app.clicked] : graph.tokens.length - 1) : 0;
        for (const f of list) if (f.label) this.names.set(f.feature, f.label);
        fill(
          found,
          list.length === 0
            ? h("p", { class: "muted small" }, "No feature has this in its label or tokens.")
            : [
                h(
                  "p",
                  { class: "muted small" },
                  `Added at ${quoted(graph?.tokens[pos] ?? "")}@${pos}, the position of what is chosen.`,
                ),
                ...list.slice(0, 8).map((/** @type {any} */ f) =>
                  button(
                    `${f.feature}  ${visible(f.label ?? f.tokens.slice(0, 3).join(" / "))}`,
                    () => {
                      app.store.set((view) => ({
                        plan: [
                          ...view.plan.filter((c) => c.node !== `${f.feature}_${pos}`),
                          { node: `${f.feature}_${pos}`, set: 10 },
                        ],
                      }));
                      input.value = "";
                      fill(found);
                    },
                    { class: "plain" },
                  ),
                ),
              ],
        );
      } catch (error) {
        app.complain(error);
      }
    });
    input.addEventListener("input", search);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        add();
      }
    });
    return h("div", { class: "adder" }, h("div", { class: "row" }, input, button("Add", add)), found);
  }

  showControls() {
    const { app } = this;
    if (!app.canRun) {
      fill(
        this.controls,
        h(
          "p",
          { class: "notice" },
          "This server has no model: changes can be planned and copied, not run. Start it with --model and --transcoders, or with nothing at all for the built-in model.",
        ),
        this.copies(),
      );
      return;
    }
    const constrained = /^constrained:(\d+)\.\.(\d+)$/.exec(app.view.mode);
    const nLayers = app.graph?.nLayers ?? 1;
    const mode = h(
      "select",
      {
        "aria-label": "What is held",
        value: constrained ? "constrained" : app.view.mode,
        onchange: (/** @type {Event} */ e) => {
          const value = /** @type {HTMLSelectElement} */ (e.target).value;
          app.store.set({ mode: value === "constrained" ? `constrained:0..${nLayers}` : value });
          this.showControls();
        },
      },
      MODES.map(([value, text, title]) => h("option", { value, title }, text)),
    );
    const from = h("input", {
      type: "number",
      min: "0",
      max: String(nLayers),
      value: constrained?.[1] ?? "0",
      "aria-label": "first layer",
    });
    const to = h("input", {
      type: "number",
      min: "1",
      max: String(nLayers),
      value: constrained?.[2] ?? String(nLayers),
      "aria-label": "layer after the last",
    });
    for (const input of [from, to])
      input.addEventListener("change", () =>
        app.store.set({
          mode: `constrained:${clamp(Number(from.value), 0, nLayers)}..${clamp(Number(to.value), 1, nLayers)}`,
        }),
      );
    const n = h("input", {
      type: "number",
      min: "0",
      max: "64",
      value: String(this.generate),
      "aria-label": "Tokens to generate",
      onchange: (/** @type {Event} */ e) => {
        this.generate = clamp(Math.round(Number(/** @type {HTMLInputElement} */ (e.target).value)) || 0, 0, 64);
      },
    });
    const t = h("input", {
      type: "number",
      min: "0",
      max: "2",
      step: "0.1",
      value: String(this.temperature),
      "aria-label": "Temperature",
      onchange: (/** @type {Event} */ e) => {
        this.temperature = clamp(Number(/** @type {HTMLInputElement} */ (e.target).value) || 0, 0, 2);
      },
    });
    const run = button("Run", () => this.run(), { class: "primary", title: "R" });
    const stop = button("Cancel", () => this.control?.abort(), { hidden: true });
    this.runButton = run;
    this.stopButton = stop;
    this.progress = h("span", { class: "muted", role: "status" });
    this.syncControls = () => {
      run.disabled = this.changes.length === 0 || Boolean(this.control);
      if (this.sweepButton) this.sweepButton.disabled = Boolean(this.control);
    };
    this.syncControls();
    fill(
      this.controls,
      h(
        "div",
        { class: "row" },
        h("label", null, "hold ", mode),
        constrained && h("span", { class: "range" }, from, "..", to),
        h("label", null, "continue by ", n),
        h("label", null, "temperature ", t),
      ),
      this.copies(this.progress, stop, run),
    );
  }

  /** @param {...Node} more */
  copies(...more) {
    return h(
      "div",
      { class: "row small" },
      button("Copy as command line", () => copy(this.command(), "Command line"), { class: "plain" }),
      button("Copy as JSON", () => copy(JSON.stringify({ interventions: this.expanded() }, null, 1), "Plan"), {
        class: "plain",
      }),
      h("span", { class: "grow" }),
      more,
    );
  }

  /** Groups as their features, so that a plan needs no file of groups. @returns {Change[]} */
  expanded() {
    const groups = new Map(this.list().map((item) => [item.place.supernode, item.ids]));
    return this.changes.flatMap(({ supernode, ...change }) =>
      supernode === undefined ? [change] : (groups.get(supernode) ?? []).map((node) => ({ node, ...change })),
    );
  }

  command() {
    const { app } = this;
    const words = ["circuitscope intervene", quote(app.graph?.header.prompt ?? "")];
    for (const c of this.expanded())
      words.push(
        c.ablate
          ? `--ablate ${quote(String(c.node))}`
          : c.set !== undefined
            ? `--set ${quote(`${c.node}=${c.set}`)}`
            : `--scale ${quote(`${c.node}=${c.scale}`)}`,
      );
    const { mode } = app.view;
    if (mode === "frozen_attention") words.push("--freeze-attention");
    else if (mode === "direct") words.push("--direct");
    else if (mode === "frozen_norms") words.push(`--constrain 0..${app.graph?.nLayers ?? 1}`);
    else if (mode.startsWith("constrained:")) words.push(`--constrain ${mode.slice(12)}`);
    if (this.generate > 0) words.push(`--generate ${this.generate}`);
    if (this.temperature > 0) words.push(`--temperature ${this.temperature}`);
    return words.join(" ");
  }

  async run() {
    const { app } = this;
    const graph = app.graph;
    if (!graph || this.control || !app.canRun) return;
    if (this.changes.length === 0) {
      toast("Nothing is changed yet: move a slider first.");
      return;
    }
    const control = (this.control = new AbortController());
    this.busy(true);
    const isFeature = (/** @type {string} */ id) => graph.kind[graph.numberOf(id)] === 0;
    const groups = app.view.groups
      .map((g) => ({ name: g.name, members: g.ids.filter(isFeature) }))
      .filter((g) => g.members.length > 0);
    this.ran = this.changes;
    const shared = { graph: graph.id, changes: this.ran, groups, mode: app.view.mode };
    const say = (/** @type {string} */ name, /** @type {any} */ data) => {
      if (!this.progress) return;
      if (name === "queued" && data.ahead > 0)
        this.progress.textContent = `waiting for ${data.ahead} other${data.ahead > 1 ? "s" : ""}…`;
      else if (name === "progress")
        this.progress.textContent = `${data.phase}${data.total ? ` ${percent(data.done / data.total)}` : ""}`;
      else if (name === "started") this.progress.textContent = "running…";
    };
    try {
      const generate =
        this.generate > 0
          ? { n_tokens: this.generate, ...(this.temperature > 0 ? { temperature: this.temperature } : {}) }
          : null;
      const result = await app.api.run(
        {
          kind: "intervene",
          ...shared,
          features: app.view.pinned.filter(isFeature),
          top: 10,
          ...(generate ? { generate } : {}),
        },
        {
          signal: control.signal,
          onevent: (name, data) => {
            if (app.graph !== graph) return;
            say(name, data);
            if (name === "compared") {
              this.take(data.comparison ?? data.result ?? data);
              this.words = { original: "", changed: "" };
              this.showResult();
            } else if (name === "token" && this.words) {
              const which = data.which === "changed" ? "changed" : "original";
              this.words[which] = data.text_so_far ?? this.words[which] + data.text;
              this.showWords();
            }
          },
        },
      );
      if (app.graph !== graph) return;
      this.take(result);
    } catch (error) {
      app.complain(error, "not run");
    } finally {
      this.control = null;
      this.busy(false);
    }
  }

  /** @param {boolean} on */
  busy(on) {
    if (this.stopButton) this.stopButton.hidden = !on;
    if (this.progress) this.progress.textContent = on ? "waiting…" : "";
    this.syncControls?.();
    this.box.setAttribute("aria-busy", String(on));
  }

  /** @param {any} result as `intervene --json` */
  take(result) {
    const { app } = this;
    const comparison = result.comparison ?? result;
    this.result = { ...result, comparison };
    this.words = result.continuation ?? null;
    /** @type {any} */
    const run = { features: {}, groups: {}, targets: {}, plan: {} };
    for (const c of this.ran) run.plan[c.node ?? `group:${c.supernode}`] = c;
    for (const f of comparison.features ?? []) run.features[`${f.layer}_${f.feature}_${f.pos ?? f.position}`] = f;
    for (const g of comparison.groups ?? []) run.groups[g.name] = g;
    for (const t of app.graph?.header.targets ?? []) {
      const token = [comparison.target, ...(comparison.tokens ?? [])].find((x) => x && x.token_id === t.token_id);
      if (token) run.targets[t.id] = { before: token.probability_before, after: token.probability_after };
    }
    app.run = run;
    app.tell("run");
    this.showResult();
    // The answer is what was asked for: it comes into sight if it is below.
    if (this.out.getBoundingClientRect().top > this.box.getBoundingClientRect().bottom - 160)
      this.out.scrollIntoView({ block: "start" });
  }

  showWords() {
    if (!this.wordsBox) return;
    const prompt = this.app.graph?.header.prompt ?? "";
    const tail = prompt.length > 40 ? `…${prompt.slice(-36)}` : prompt;
    const words = this.words ?? { original: "", changed: "" };
    fill(
      this.wordsBox,
      /** @type {const} */ ([
        ["as it was", words.original],
        ["changed", words.changed],
      ]).map(([name, text]) =>
        h(
          "div",
          { class: "words" },
          h("span", { class: "muted" }, name),
          h("p", null, h("span", { class: "muted" }, tail), h("b", null, text)),
        ),
      ),
    );
  }

  showResult() {
    const r = this.result;
    if (!r) {
      fill(this.out);
      this.wordsBox = null;
      return;
    }
    const c = r.comparison;
    const t = c.target;
    const tokens = c.tokens ?? [];
    const bars = h(
      "table",
      { class: "tokens" },
      h("caption", { class: "hidden" }, "Probability of the next token before and after"),
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          h("th", { scope: "col" }, "next token"),
          h("th", { scope: "col" }, "before"),
          h("th", { scope: "col" }, "after"),
          h("th", { scope: "col" }, "rank"),
        ),
      ),
      h(
        "tbody",
        null,
        tokens
          .slice(0, 8)
          .map((/** @type {any} */ x) =>
            h(
              "tr",
              null,
              h("th", { scope: "row" }, visible(x.text)),
              h(
                "td",
                null,
                h("i", { class: "before", style: { width: `${(70 * x.probability_before).toFixed(1)}%` } }),
                h("span", null, probability(x.probability_before)),
              ),
              h(
                "td",
                null,
                h("i", { class: "after", style: { width: `${(70 * x.probability_after).toFixed(1)}%` } }),
                h("span", null, probability(x.probability_after)),
              ),
              h("td", { class: "figure" }, `${x.rank_before} → ${x.rank_after}`),
            ),
          ),
      ),
    );
    const features = (c.features ?? [])
      .filter((/** @type {any} */ f) => Math.abs(f.before - f.after) > 0.005 * Math.abs(f.before) || f.before === 0)
      .filter(
        (/** @type {any} */ f) =>
          !this.ran.some((change) => change.node === `${f.layer}_${f.feature}_${f.pos ?? f.position}`),
      )
      .slice(0, 10);
    const pre = c.measure === "pre-activation";
    const wordsBox = h("div", { class: "continuations", "aria-live": "polite" });
    this.wordsBox = this.words ? wordsBox : null;
    fill(
      this.out,
      h("h2", null, "Answer"),
      h(
        "p",
        { class: "verdict" },
        h("b", null, quoted(t.text)),
        ` ${probability(t.probability_before)} → `,
        h("b", null, probability(t.probability_after)),
        `, rank ${t.rank_before} → ${t.rank_after}, logit ${signed(t.logit_change, 4)}; the distribution moves by ${num(c.kl_divergence)} nats.`,
      ),
      this.predicted(t),
      bars,
      this.words && wordsBox,
      features.length > 0 &&
        h(
          "details",
          { open: true },
          h(
            "summary",
            null,
            `${this.app.view.pinned.length ? "Pinned features" : "Largest changes"}${pre ? " (pre-activations)" : ""}`,
          ),
          h(
            "table",
            { class: "tokens" },
            h(
              "tbody",
              null,
              features.map((/** @type {any} */ f) => {
                const id = `${f.layer}_${f.feature}_${f.pos ?? f.position}`;
                const n = this.app.graph?.numberOf(id) ?? -1;
                return h(
                  "tr",
                  null,
                  h("th", { scope: "row" }, visible(n >= 0 ? (this.app.graph?.name(n) ?? id) : (f.label ?? id))),
                  h("td", { class: "figure" }, num(f.before)),
                  h("td", { class: "figure" }, f.after === 0 && !pre ? "off" : num(f.after)),
                  h("td", { class: "figure" }, change(f.before, f.after)),
                );
              }),
            ),
          ),
        ),
    );
    if (this.words) this.showWords();
  }

  /** What the graph predicted for these changes, where a measurement of single ablations says. @param {any} target */
  predicted(target) {
    const graph = this.app.graph;
    const modes = graph?.header.verification?.faithfulness?.modes;
    if (!graph || !modes) return null;
    const mode =
      modes.find((/** @type {any} */ m) =>
        m.mode
          .replace(/\s/g, "_")
          .startsWith(
            this.app.view.mode === "direct"
              ? "direct"
              : this.app.view.mode === "frozen_norms"
                ? "frozen_attention_and"
                : this.app.view.mode,
          ),
      ) ?? modes[0];
    let sum = 0;
    for (const c of this.expanded()) {
      const single = mode.single.find((/** @type {any} */ p) => `${p.layer}_${p.feature}_${p.pos}` === c.node);
      if (!single || c.set !== undefined) return null;
      sum += single.predicted * (c.ablate ? 1 : 1 - (c.scale ?? 1));
    }
    return h(
      "p",
      { class: "muted" },
      `The graph predicts ${signed(sum)} for the logit of its target, the model does ${signed(target.logit_change)}.`,
    );
  }

  // -- sweeps ------------------------------------------------------------------------------------------------------------

  showSweep() {
    const { app } = this;
    const items = this.list();
    if (!app.canRun || items.length === 0) {
      fill(this.sweepBox);
      return;
    }
    const which = h(
      "select",
      { "aria-label": "What to sweep" },
      items.map((item) => h("option", { value: item.key }, item.name ? visible(item.name) : item.key)),
    );
    const from = h("input", { type: "number", step: "any", value: "-1", "aria-label": "from" });
    const to = h("input", { type: "number", step: "any", value: "2", "aria-label": "to" });
    const step = h("input", { type: "number", step: "any", value: "0.25", "aria-label": "step" });
    const unit = h("span", { class: "muted" });
    const reset = () => {
      const item = items.find((i) => i.key === which.value);
      const group = Boolean(item?.place.supernode);
      unit.textContent = group ? "times" : "activation";
      const top = group ? 2 : Math.max(4, Math.ceil((item?.activation || 10) * 1.5));
      from.value = group ? "-1" : "0";
      to.value = String(top);
      step.value = group ? "0.25" : String(Number((top / 12).toPrecision(2)));
    };
    which.addEventListener("change", reset);
    reset();
    const plot = h("div", { class: "plot-box" });
    const run = (this.sweepButton = button("Run sweep", async () => {
      const item = items.find((i) => i.key === which.value);
      if (!item || !app.graph || this.control) return;
      if (!(Number(step.value) > 0 && Number(to.value) > Number(from.value))) {
        toast("A sweep goes from a smaller to a larger value, by steps above 0.");
        return;
      }
      const control = (this.control = new AbortController());
      this.busy(true);
      try {
        const name = item.place.supernode ?? item.place.node;
        const changes = this.changes.filter((c) => c.node !== item.place.node || c.supernode !== item.place.supernode);
        const groups = app.view.groups
          .map((g) => ({ name: g.name, members: g.ids.filter((id) => app.graph?.kind[app.graph.numberOf(id)] === 0) }))
          .filter((g) => g.members.length > 0);
        const swept = await app.api.run(
          {
            kind: "sweep",
            graph: app.graph.id,
            sweep: `${name}=${from.value}..${to.value}/${step.value}`,
            changes,
            groups,
            mode: app.view.mode,
          },
          { signal: control.signal },
        );
        this.swept = { name: item.name, unit: unit.textContent, result: swept.result ?? swept };
        fill(plot, sweepPlot(this.swept));
      } catch (error) {
        app.complain(error, "not swept");
      } finally {
        this.control = null;
        this.busy(false);
      }
    }));
    if (this.swept) fill(plot, sweepPlot(this.swept));
    fill(
      this.sweepBox,
      h("h2", null, "Sweep"),
      h(
        "div",
        { class: "row" },
        which,
        unit,
        h("label", null, "from ", from),
        h("label", null, "to ", to),
        h("label", null, "by ", step),
        run,
      ),
      plot,
    );
  }
}

/** The target's probability over the values of a sweep. @param {{name: string, unit: string|null, result: any}} swept */
function sweepPlot({ name, unit, result }) {
  const points = (result.points ?? [])
    .map((/** @type {any} */ p) => ({ ...p, value: p.value ?? Number(String(p.name).split("=").pop()) }))
    .filter((/** @type {any} */ p) => Number.isFinite(p.value));
  if (points.length < 2) return h("p", { class: "muted" }, "The sweep has too few values for a plot.");
  const W = 420,
    H = 160,
    L = 34,
    B = 24,
    T = 22,
    R = 10;
  const x0 = points[0].value,
    x1 = points[points.length - 1].value;
  const x = (/** @type {number} */ v) => L + ((v - x0) / (x1 - x0 || 1)) * (W - L - R);
  const y = (/** @type {number} */ p) => T + (1 - p) * (H - T - B);
  const line = points
    .map(
      (/** @type {any} */ p, /** @type {number} */ i) =>
        `${i ? "L" : "M"}${x(p.value).toFixed(1)} ${y(p.target_probability).toFixed(1)}`,
    )
    .join("");
  const target = result.target ?? "the target";
  // Where the likeliest token changes, its name stands over the plot.
  const answers = points.filter(
    (/** @type {any} */ p, /** @type {number} */ i) => i === 0 || p.top_token !== points[i - 1].top_token,
  );
  let free = -Infinity;
  return h(
    "figure",
    null,
    s(
      "svg",
      {
        viewBox: `0 0 ${W} ${H}`,
        class: "sweep-plot",
        role: "img",
        "aria-label": `Probability of ${String(target)} as ${name} goes from ${num(x0)} to ${num(x1)}`,
      },
      [0, 0.5, 1]
        .map((p) => [
          s("line", { x1: L, x2: W - R, y1: y(p), y2: y(p), class: "rule" }),
          s("text", { x: L - 6, y: y(p), class: "tick right" }, String(p)),
        ])
        .flat(),
      ticks(x0, x1, 6).map((v) => s("text", { x: x(v), y: H - 8, class: "tick" }, String(v))),
      answers.flatMap((/** @type {any} */ p) => {
        const at = x(p.value);
        const text = visible(p.top_token ?? "").trim();
        if (at < free || !text) return [];
        free = at + text.length * 6.2 + 8;
        return [
          s("line", { x1: at, x2: at, y1: T - 8, y2: H - B, class: "answer" }),
          s("text", { x: at + 3, y: 9, class: "tick left" }, text),
        ];
      }),
      s("path", { d: line, class: "curve" }),
      points.map((/** @type {any} */ p) =>
        s(
          "circle",
          { cx: x(p.value), cy: y(p.target_probability), r: 3, class: "point" },
          s(
            "title",
            null,
            `${num(p.value)}: ${probability(p.target_probability)}, rank ${p.target_rank}, ${num(p.kl_divergence)} nats; likeliest ${quoted(p.top_token ?? "")} ${probability(p.top_probability)}`,
          ),
        ),
      ),
    ),
    h("figcaption", { class: "muted" }, `Probability of ${quoted(String(target))} against ${visible(name)} (${unit ?? ""})`),
  );
}

/** For a POSIX shell. @param {string} text */
export function quote(text) {
  if (/^[A-Za-z0-9_=.,:/+-]+$/.test(text)) return text;
  return /["$`\\!]/.test(text) ? `'${text.replace(/'/g, `'\\''`)}'` : `"${text}"`;
}
