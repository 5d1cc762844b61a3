// The view: one immutable value, who wants to hear of its changes, and the way back.

/** @typedef {{name: string, ids: string[]}} Group */
/** As the server takes it: one of `set`, `scale` and `ablate`. @typedef {{node?: string, supernode?: string, set?: number, scale?: number, ablate?: boolean}} Change */
/**
 * What a person has made of a graph and where they look. `pinned` to `places` are the story: they are undone, saved
 * beside the graph and shared in the URL; the rest is shared only.
 * @typedef {object} View
 * @property {string} slug the graph
 * @property {string[]} pinned node ids
 * @property {string[]} hidden node ids
 * @property {Group[]} groups supernodes; every member is pinned, and in one group only
 * @property {Record<string, string>} labels by feature (`layer_feature`)
 * @property {Record<string, [number, number]>} places where boxes were dragged to, by node id or `group:name`
 * @property {string} note free text
 * @property {string|null} clicked node id
 * @property {number|null} nodeThreshold share of influence that nodes are pruned to; null: as the file is
 * @property {number|null} edgeThreshold
 * @property {Filter} filter
 * @property {string|null} other the graph to compare with
 * @property {string} tab what stands at the right: `node`, `whatif` or `compare`
 * @property {Change[]} plan what steering changes
 * @property {string} mode what is held meanwhile: `free`, `frozen_attention`, `frozen_norms`, `direct` or `constrained:A..B`
 */
/**
 * @typedef {object} Filter
 * @property {string[]} kinds kinds that are left out
 * @property {[number, number]|null} layers first and last that are shown
 * @property {[number, number]|null} positions
 * @property {string} text part of a label
 * @property {number} minShare
 */

export const STORY = /** @type {const} */ (["pinned", "hidden", "groups", "labels", "places", "note"]);

/** @type {Filter} */
export const NO_FILTER = Object.freeze({ kinds: [], layers: null, positions: null, text: "", minShare: 0 });

/** @returns {View} */
export function emptyView(slug = "") {
  return {
    slug,
    pinned: [],
    hidden: [],
    groups: [],
    labels: {},
    places: {},
    note: "",
    clicked: null,
    nodeThreshold: null,
    edgeThreshold: null,
    filter: NO_FILTER,
    other: null,
    tab: "node",
    plan: [],
    mode: "free",
  };
}

/** @param {View} view */
export const storyOf = (view) => Object.fromEntries(STORY.map((key) => [key, view[key]]));

/** @param {View} a @param {View} b */
const sameStory = (a, b) => a === b || STORY.every((key) => a[key] === b[key] || same(a[key], b[key]));

/** @param {unknown} a @param {unknown} b */
export const same = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);

const MAX_UNDO = 200;

export class Store {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {View[]} */
    this.past = [];
    /** @type {View[]} */
    this.future = [];
    /** @type {Set<(now: View, before: View) => void>} */
    this.listeners = new Set();
    /** The last change's kind: changes of one kind in a row are undone together. @type {string|null} */
    this.merging = null;
  }

  /** @param {(now: View, before: View) => void} listener */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * @param {Partial<View>|((view: View) => Partial<View>)} change
   * @param {string|null} [merge] a drag is many changes of one kind, undone in one step
   */
  set(change, merge = null) {
    const before = this.view;
    const patch = typeof change === "function" ? change(before) : change;
    const now = tidy({ ...before, ...patch });
    if (same(now, before)) return;
    if (!sameStory(now, before)) {
      if (merge === null || merge !== this.merging) {
        this.past.push(before);
        if (this.past.length > MAX_UNDO) this.past.shift();
      }
      this.future = [];
      this.merging = merge;
    }
    this.view = now;
    this.tell(before);
  }

  /** Another graph, or what was saved: nothing to go back to. @param {View} view */
  reset(view) {
    const before = this.view;
    this.view = tidy(view);
    this.past = [];
    this.future = [];
    this.merging = null;
    this.tell(before);
  }

  undo() {
    return this.step(this.past, this.future);
  }

  redo() {
    return this.step(this.future, this.past);
  }

  /** @param {View[]} from @param {View[]} to */
  step(from, to) {
    const story = from.pop();
    if (!story) return false;
    const before = this.view;
    to.push(before);
    this.merging = null;
    this.view = tidy({ ...before, ...storyOf(story) });
    this.tell(before);
    return true;
  }

  /** @param {View} before */
  tell(before) {
    for (const listener of [...this.listeners]) listener(this.view, before);
  }
}

/**
 * Members are pinned, in one group, and a group has at least one; names are not empty and differ.
 * @param {View} view
 * @returns {View}
 */
export function tidy(view) {
  const hidden = new Set(view.hidden);
  const pinned = [...new Set(view.pinned)].filter((id) => !hidden.has(id));
  const is = new Set(pinned);
  const taken = new Set();
  const names = new Set();
  const groups = [];
  for (const group of view.groups) {
    const ids = group.ids.filter((id) => is.has(id) && !taken.has(id));
    if (ids.length === 0) continue;
    for (const id of ids) taken.add(id);
    groups.push({ name: freeName(group.name.trim() || "group", names), ids: [...new Set(ids)] });
    names.add(groups[groups.length - 1].name);
  }
  const next = { ...view, pinned, groups };
  for (const key of /** @type {const} */ (["pinned", "groups"])) {
    if (same(next[key], view[key])) Object.assign(next, { [key]: view[key] });
  }
  return next;
}

/** @param {string} name @param {Set<string>} names */
export function freeName(name, names) {
  if (!names.has(name)) return name;
  for (let k = 2; ; k++) if (!names.has(`${name} ${k}`)) return `${name} ${k}`;
}

/** @param {View} view @param {string} id @returns {Partial<View>} */
export function togglePin(view, id) {
  return view.pinned.includes(id)
    ? { pinned: view.pinned.filter((other) => other !== id) }
    : { pinned: [...view.pinned, id], hidden: view.hidden.filter((other) => other !== id) };
}

/**
 * Puts nodes into one supernode: what they were in before, they leave. Groups among `keys` dissolve into the new one.
 * @param {View} view @param {string[]} ids @param {string} name
 * @returns {Partial<View>}
 */
export function makeGroup(view, ids, name) {
  const chosen = new Set(ids);
  const rest = view.groups.map((group) => ({ name: group.name, ids: group.ids.filter((id) => !chosen.has(id)) }));
  const names = new Set(rest.filter((group) => group.ids.length > 0).map((group) => group.name));
  return {
    pinned: [...view.pinned, ...ids.filter((id) => !view.pinned.includes(id))],
    groups: [...rest, { name: freeName(name.trim() || "group", names), ids: [...chosen] }],
  };
}

/** @param {View} view @param {string} name @returns {Partial<View>} */
export function ungroup(view, name) {
  return { groups: view.groups.filter((group) => group.name !== name) };
}

/** @param {View} view @param {string} from @param {string} to @returns {Partial<View>} */
export function renameGroup(view, from, to) {
  const name = freeName(to.trim() || from, new Set(view.groups.map((g) => g.name).filter((n) => n !== from)));
  const places = { ...view.places };
  if (name !== from && places[`group:${from}`]) {
    places[`group:${name}`] = places[`group:${from}`];
    delete places[`group:${from}`];
  }
  return { groups: view.groups.map((g) => (g.name === from ? { name, ids: g.ids } : g)), places };
}
