// What all panels share: the view, the open graph, what is hovered, and every action that a key or a button can ask for.

import { ApiError, isAbort } from "./api.js";
import { ask, debounce, toast } from "./dom.js";
import { Graph } from "./graph.js";
import { quoted } from "./scale.js";
import { Store, emptyView, makeGroup, renameGroup, same, storyOf, togglePin, ungroup } from "./store.js";
import { asView, readParams, readUrl, writeUrl } from "./url.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./store.js").View} View */
/** @typedef {"graph"|"cut"|"view"|"hover"|"links"|"run"|"health"|"online"|"trail"|"scores"|"loading"|"graphs"|"selection"|"other"|"compared"|"summary"} Topic */

const MAX_QUERY = 4000;

export class App {
  /** @param {Api} api */
  constructor(api) {
    this.api = api;
    this.store = new Store(emptyView());
    /** @type {Graph|null} */
    this.graph = null;
    /** The graph that is compared with. @type {Graph|null} */
    this.other = null;
    /** @type {any} */
    this.health = null;
    /** @type {any[]} */
    this.graphs = [];
    /** Why no graph is shown: a sentence, or null. @type {{title: string, text: string, retry?: boolean}|null} */
    this.trouble = null;
    this.loading = false;
    this.hover = -1;
    this.frozen = false;
    /** Paths that are shown in the graph: nodes in order. @type {number[][]} */
    this.trail = [];
    /** Boxes chosen in the circuit panel: node ids and `group:name`. @type {Set<string>} */
    this.selection = new Set();
    /** Nodes clicked while G is held. @type {Set<string>|null} */
    this.gathering = null;
    /** What the boxes of the circuit hold: the layout puts unnamed nodes of one place into one box. @type {Map<string, string[]>} */
    this.boxed = new Map();
    /** The last steering: changes by node id, in per cent and the like. @type {any} */
    this.run = null;
    /** Scores of the pinned part. @type {any} */
    this.scores = null;
    /** @type {any} */
    this.extra = { logitDiff: null, feature: null };
    this.etag = "";
    /** @type {Record<string, any>} */
    this.others = {};
    /** @type {string} */
    this.saved = "";
    /** @type {Map<Topic, Set<(...args: any[]) => void>>} */
    this.topics = new Map();
    /** @type {AbortController|null} */
    this.opening = null;
    this.store.subscribe((now, before) => this.changed(now, before));
    this.writeUrl = debounce(120, () => this.writeUrlNow());
    this.askScores = debounce(150, () => this.askScoresNow());
    this.askSummary = debounce(200, () => this.askSummaryNow());
    this.opened = 0;
  }

  /** @param {Topic} topic @param {(...args: any[]) => void} listener */
  on(topic, listener) {
    let set = this.topics.get(topic);
    if (!set) this.topics.set(topic, (set = new Set()));
    set.add(listener);
  }

  /** @param {Topic} topic @param {...any} args */
  tell(topic, ...args) {
    for (const listener of this.topics.get(topic) ?? []) listener(...args);
  }

  get view() {
    return this.store.view;
  }
  get clicked() {
    return this.graph ? this.graph.numberOf(this.view.clicked) : -1;
  }
  get canRun() {
    return Boolean(this.health?.model);
  }

  /** Shows what went wrong, unless it was given up on purpose. @param {unknown} error @param {string} [doing] */
  complain(error, doing = "") {
    if (isAbort(error)) return;
    if (error instanceof ApiError && error.status === 0) return;
    const message = error instanceof Error ? error.message : String(error);
    const hint = error instanceof ApiError && error.hint ? ` – ${error.hint}` : "";
    toast(`${doing ? `${doing}: ` : ""}${message}${hint}`, { kind: "error" });
    if (!(error instanceof ApiError)) console.warn(error);
  }

  /** @param {View} now @param {View} before */
  changed(now, before) {
    if (this.graph && now.labels !== before.labels) this.graph.labels = now.labels;
    if (now.clicked !== before.clicked) {
      const n = this.clicked;
      if (n >= 0) this.wantLinks(n);
      if (this.trail.length && now.clicked !== null) this.setTrail([]);
    }
    if (now.pinned !== before.pinned) {
      this.askScores();
      this.selection = new Set([...this.selection].filter((key) => key.startsWith("group:") || now.pinned.includes(key)));
    }
    this.writeUrl();
    this.tell("view", now, before);
  }

  // -- where the view is kept -------------------------------------------------------------------------------------------

  writeUrlNow() {
    const text = writeUrl(this.view);
    // A long query would be too long for a request's first line; behind # it never leaves the browser.
    const where = text.length <= MAX_QUERY ? text : `?slug=${encodeURIComponent(this.view.slug)}#${text.slice(1)}`;
    history.replaceState(null, "", location.pathname + where);
  }

  readUrl() {
    const { view, extra } = readUrl(location.hash.length > 1 ? location.hash.slice(1) : location.search);
    this.extra = extra;
    return view;
  }

  /** The view as the server keeps it. @returns {any} */
  toServer() {
    const view = this.view;
    return {
      pinned: view.pinned,
      hidden: view.hidden,
      clicked: view.clicked,
      labels: view.labels,
      positions: view.places,
      note: view.note,
      groups: view.groups.map((group) => ({ name: group.name, members: group.ids })),
      node_threshold: view.nodeThreshold,
      edge_threshold: view.edgeThreshold,
      other: this.others,
    };
  }

  /** @param {any} from @returns {Partial<View>} */
  fromServer(from) {
    const groups = (from.groups ?? []).map((/** @type {any} */ g) => ({ name: String(g.name), ids: g.members ?? [] }));
    const members = groups.flatMap((/** @type {any} */ g) => g.ids);
    return {
      pinned: [...new Set([...(from.pinned ?? []), ...members])],
      hidden: from.hidden ?? [],
      clicked: from.clicked || null,
      groups,
      labels: readParams({ clerps: from.labels ?? {} }).labels ?? {},
      places: readParams({ layout: from.positions ?? {} }).places ?? {},
      note: from.note ?? "",
      nodeThreshold: from.node_threshold ?? null,
      edgeThreshold: from.edge_threshold ?? null,
    };
  }

  /** @param {View} view */
  fingerprint(view) {
    return JSON.stringify([storyOf(view), view.nodeThreshold, view.edgeThreshold]);
  }

  get dirty() {
    return this.graph !== null && (Boolean(this.graph.header.in_memory) || this.fingerprint(this.view) !== this.saved);
  }

  async save() {
    const graph = this.graph;
    if (!graph || !this.health) return;
    if (!this.health.can_save) {
      toast("This server has no folder to save into. The address of this page holds everything: bookmark it.");
      return;
    }
    try {
      if (graph.header.in_memory) {
        await this.api.saveGraph(graph.id);
        graph.header.in_memory = false;
        ({ etag: this.etag } = await this.api.view(graph.id));
      }
      const sent = this.view;
      const { view, etag } = await this.api.saveView(graph.id, this.toServer(), this.etag);
      this.etag = etag;
      this.others = view.other ?? {};
      this.saved = this.fingerprint(sent);
      this.tell("view", this.view, this.view);
      toast("Saved into the graph’s file.");
    } catch (error) {
      if (error instanceof ApiError && error.status === 412) await this.conflict();
      else this.complain(error, "not saved");
    }
  }

  /** Somebody else saved meanwhile: nothing is overwritten unasked. */
  async conflict() {
    const graph = this.graph;
    if (!graph) return;
    const { view, etag } = await this.api.view(graph.id);
    const theirs = asView({ ...this.fromServer(view), slug: this.view.slug });
    const choice = await (await import("./dialogs.js")).conflictDialog(this, theirs);
    if (!choice) return;
    this.etag = etag;
    this.others = view.other ?? {};
    if (choice === "theirs") {
      this.store.set(storyOf(theirs));
      this.saved = this.fingerprint(this.view);
      this.tell("view", this.view, this.view);
      return;
    }
    if (choice === "both") {
      const mine = this.view;
      const taken = new Set(mine.groups.flatMap((group) => group.ids));
      this.store.set({
        pinned: [...mine.pinned, ...theirs.pinned.filter((id) => !mine.pinned.includes(id))],
        hidden: [...new Set([...mine.hidden, ...theirs.hidden])].filter((id) => !mine.pinned.includes(id)),
        groups: [
          ...mine.groups,
          ...theirs.groups
            .map((g) => ({ name: g.name, ids: g.ids.filter((id) => !taken.has(id)) }))
            .filter((g) => g.ids.length > 0),
        ],
        labels: { ...theirs.labels, ...mine.labels },
        places: { ...theirs.places, ...mine.places },
        note:
          mine.note && theirs.note && mine.note !== theirs.note ? `${mine.note}\n${theirs.note}` : mine.note || theirs.note,
      });
    }
    await this.save();
  }

  // -- graphs ------------------------------------------------------------------------------------------------------------

  async listGraphs() {
    const { graphs } = await this.api.graphs();
    this.graphs = graphs;
    this.tell("graphs");
    return graphs;
  }

  get at() {
    return { node_threshold: this.view.nodeThreshold, edge_threshold: this.view.edgeThreshold };
  }

  /** @param {string} id @param {Partial<View>|null} [over] what a link says, over what is saved */
  async open(id, over = null) {
    this.opening?.abort();
    const control = (this.opening = new AbortController());
    this.loading = true;
    this.trouble = null;
    this.tell("loading");
    try {
      const { view, etag } = await this.api.view(id);
      const savedView = asView({ ...this.fromServer(view), slug: id });
      const next = asView({ ...savedView, ...(over ?? {}), slug: id });
      const graph = await Graph.open(
        this.api,
        id,
        { node_threshold: next.nodeThreshold, edge_threshold: next.edgeThreshold },
        control.signal,
      );
      if (control.signal.aborted) return;
      const unknown = [...next.pinned, ...next.hidden].filter((id) => graph.numberOf(id) < 0);
      if (unknown.length > 0) {
        const gone = new Set(unknown);
        next.pinned = next.pinned.filter((id) => !gone.has(id));
        next.hidden = next.hidden.filter((id) => !gone.has(id));
        toast(
          `${unknown.length} of the pinned nodes ${unknown.length === 1 ? "is" : "are"} not in this graph: ${unknown.slice(0, 3).join(", ")}${unknown.length > 3 ? ", …" : ""}`,
        );
      }
      if (next.clicked && graph.numberOf(next.clicked) < 0) next.clicked = null;
      this.graph = graph;
      this.etag = etag;
      this.others = view.other ?? {};
      this.saved = this.fingerprint(savedView);
      this.hover = -1;
      this.trail = [];
      this.selection = new Set();
      this.run = null;
      this.scores = null;
      this.loading = false;
      graph.labels = next.labels;
      if (this.other?.id !== next.other) this.other = null;
      this.opened++;
      this.tell("graph");
      this.store.reset(asView(next));
      if (this.clicked >= 0) this.wantLinks(this.clicked);
      this.askScores();
      this.askSummaryNow();
      if (next.other && !this.other) this.compare(next.other);
    } catch (error) {
      if (isAbort(error)) return;
      this.loading = false;
      this.graph = null;
      const message = error instanceof Error ? error.message : String(error);
      const offline = error instanceof ApiError && error.status === 0;
      this.trouble = offline
        ? null
        : {
            title:
              error instanceof ApiError && error.status === 404
                ? `There is no graph ${quoted(id)} here`
                : "This graph cannot be opened",
            text:
              error instanceof ApiError && error.status === 404
                ? ""
                : message + (error instanceof ApiError && error.hint ? ` – ${error.hint}` : ""),
          };
      this.tell("graph");
      this.store.reset(emptyView());
    }
  }

  /** @param {string|null} id */
  async compare(id) {
    if (id === null) {
      this.other = null;
      this.store.set({ other: null });
      this.tell("other");
      return;
    }
    try {
      const graph = await Graph.open(this.api, id, this.at);
      this.other = graph;
      this.store.set({ other: id, tab: "compare" });
    } catch (error) {
      this.other = null;
      this.store.set({ other: null });
      this.complain(error, "cannot compare");
    }
    this.tell("other");
  }

  /** @param {number|null} node @param {number|null} edge */
  setThresholds(node, edge) {
    this.store.set({ nodeThreshold: node, edgeThreshold: edge });
    this.prune();
  }

  /** One request at a time; the last wish wins. */
  async prune() {
    const graph = this.graph;
    if (!graph) return;
    if (this.pruning) {
      this.pruneAgain = true;
      return;
    }
    this.pruning = true;
    try {
      do {
        this.pruneAgain = false;
        await graph.prune(this.at);
        if (this.graph !== graph) return;
        this.setTrail([]);
        this.tell("cut");
        if (this.clicked >= 0) this.wantLinks(this.clicked);
      } while (this.pruneAgain);
      this.askScores();
      this.askSummary();
    } catch (error) {
      this.complain(error, "cannot prune");
    } finally {
      this.pruning = false;
    }
  }

  /** The story of the cut, which takes longer than the cut itself: what is drawn does not wait for it. */
  async askSummaryNow() {
    const { graph, at } = this;
    if (!graph) return;
    try {
      const { summary } = await this.api.graph(graph.id, at, true);
      if (this.graph !== graph || !same(at, this.at)) return;
      graph.header.summary = summary;
      this.tell("summary");
    } catch (error) {
      this.complain(error);
    }
  }

  async askScoresNow() {
    const { graph, view } = this;
    if (!graph || view.pinned.length === 0) {
      this.scores = null;
      this.tell("scores");
      return;
    }
    const asked = view.pinned;
    try {
      const scores = await this.api.scores(graph.id, asked, this.at);
      if (this.graph !== graph || this.view.pinned !== asked) return;
      this.scores = scores;
      this.tell("scores");
    } catch (error) {
      this.complain(error);
    }
  }

  /** @param {number} n */
  wantLinks(n) {
    const graph = this.graph;
    if (!graph) return;
    const links = graph.linksOf(n);
    if (links instanceof Promise)
      links
        .then(() => {
          if (this.graph === graph) this.tell("links", n);
        })
        .catch((error) => this.complain(error));
    else this.tell("links", n);
  }

  // -- nodes -------------------------------------------------------------------------------------------------------------

  /** @param {number} n */
  setHover(n) {
    if (this.frozen || n === this.hover) return;
    this.hover = n;
    this.tell("hover");
  }

  /** A click on a node, wherever it is shown. @param {number} n @param {MouseEvent|KeyboardEvent|Event|null} event */
  click(n, event) {
    const graph = this.graph;
    if (!graph) return;
    if (n < 0) {
      this.store.set({ clicked: null });
      this.setTrail([]);
      return;
    }
    const id = graph.idOf(n);
    const e = /** @type {MouseEvent|null} */ (event);
    if (this.gathering) {
      this.gather(id);
      return;
    }
    if (e && (e.ctrlKey || e.metaKey)) {
      this.togglePin(id);
      return;
    }
    this.store.set({ clicked: this.view.clicked === id ? null : id });
  }

  /** @param {string|null} id */
  choose(id) {
    this.store.set({ clicked: id });
  }

  /** @param {string} id */
  togglePin(id) {
    if (!this.view.pinned.includes(id) && this.view.pinned.length >= 200) {
      toast("200 nodes can be pinned; unpin some first.");
      return;
    }
    this.store.set((view) => togglePin(view, id));
  }

  /** @param {string[]} ids */
  pinAll(ids) {
    const room = 200 - this.view.pinned.length;
    const fresh = ids.filter((id) => !this.view.pinned.includes(id));
    if (fresh.length > room) toast(`200 nodes can be pinned: the first ${room} of ${fresh.length} were.`);
    this.store.set((view) => ({ pinned: [...view.pinned, ...fresh.slice(0, room)] }));
  }

  /** @param {string} id */
  hide(id) {
    this.store.set((view) => ({
      hidden: [...view.hidden, id],
      pinned: view.pinned.filter((x) => x !== id),
      clicked: view.clicked === id ? null : view.clicked,
    }));
    toast(`Hidden: ${id}`, { action: ["Undo", () => this.store.undo()] });
  }

  /** @param {string} id */
  gather(id) {
    if (!this.gathering) return;
    if (this.gathering.has(id)) this.gathering.delete(id);
    else this.gathering.add(id);
    this.tell("selection");
  }

  /** The nodes behind chosen boxes. @param {Iterable<string>} keys */
  members(keys) {
    const ids = new Set();
    for (const key of keys) {
      if (!key.startsWith("group:")) for (const id of this.boxed.get(key) ?? [key]) ids.add(id);
      else for (const id of this.view.groups.find((group) => `group:${group.name}` === key)?.ids ?? []) ids.add(id);
    }
    return /** @type {string[]} */ ([...ids]);
  }

  /** Makes one supernode of these, named by what they have in common. @param {string[]} ids */
  group(ids) {
    const graph = this.graph;
    if (!graph) return;
    const fit = ids.filter((id) => {
      const n = graph.numberOf(id);
      return n >= 0 && graph.kind[n] !== 3;
    });
    if (fit.length < 2) {
      toast("Choose two or more nodes to group: Shift-click boxes of the circuit, or hold G and click nodes.");
      return;
    }
    const names = fit.map((id) => graph.label(graph.numberOf(id))).filter(Boolean);
    const often = new Map();
    for (const name of names) often.set(name, (often.get(name) ?? 0) + 1);
    const [name] = [...often.entries()].sort((a, b) => b[1] - a[1])[0] ?? [
      `at ${quoted(graph.tokens[graph.pos[graph.numberOf(fit[0])]] ?? "")}`,
    ];
    this.store.set((view) => makeGroup(view, fit, name));
    const made = this.view.groups[this.view.groups.length - 1];
    this.select([`group:${made.name}`]);
    toast(`Grouped ${fit.length} nodes as ${quoted(made.name)}.`, { action: ["Rename", () => this.rename(made.name)] });
  }

  /** @param {string} name */
  ungroup(name) {
    const ids = this.view.groups.find((group) => group.name === name)?.ids ?? [];
    this.store.set((view) => ungroup(view, name));
    this.select(ids);
  }

  /** @param {string} name */
  async rename(name) {
    const to = await ask("Name of the group", name);
    if (to === null || to.trim() === "" || to === name) return;
    this.store.set((view) => renameGroup(view, name, to));
    this.select(
      this.view.groups
        .filter((group) => !this.selection.has(`group:${group.name}`) && group.name.startsWith(to.trim()))
        .map((g) => `group:${g.name}`)
        .slice(-1),
    );
  }

  /** @param {Iterable<string>} keys */
  select(keys) {
    this.selection = new Set(keys);
    this.tell("selection");
  }

  /** @param {number} n */
  async editLabel(n) {
    const graph = this.graph;
    const key = graph?.featureKey(n);
    if (!graph || !key) return;
    const own = this.view.labels[key];
    const label = await ask(`Label of feature ${key}`, graph.label(n), "Label; empty: the original one");
    if (label === null) return;
    this.store.set((view) => {
      const labels = { ...view.labels };
      if (label.trim() === "" || (own === undefined && label === graph.decode("label", n))) delete labels[key];
      else labels[key] = label.trim();
      return { labels };
    });
  }

  /** @param {number[][]} paths */
  setTrail(paths) {
    if (paths.length === 0 && this.trail.length === 0) return;
    this.trail = paths;
    this.tell("trail");
  }

  undo() {
    if (!this.store.undo()) toast("Nothing to undo.");
  }
  redo() {
    if (!this.store.redo()) toast("Nothing to redo.");
  }

  /** Whether a node passes the filters; what is pinned or chosen always does. @param {number} n */
  passes(n) {
    const graph = /** @type {Graph} */ (this.graph);
    const f = this.view.filter;
    if (f.kinds.length && f.kinds.includes(graph.kindOf(n))) return false;
    const kind = graph.kind[n];
    if (f.layers && (kind === 0 || kind === 1) && (graph.layer[n] < f.layers[0] || graph.layer[n] > f.layers[1]))
      return false;
    if (f.positions && (graph.pos[n] < f.positions[0] || graph.pos[n] > f.positions[1])) return false;
    if (f.minShare && kind < 2 && graph.cut.share[n] < f.minShare) return false;
    if (f.text && kind === 0 && !`${graph.label(n)} ${graph.idOf(n)}`.toLowerCase().includes(f.text.toLowerCase()))
      return false;
    return true;
  }

  get filtered() {
    return !same(this.view.filter, emptyView().filter);
  }
}
