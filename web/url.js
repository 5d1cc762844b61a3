// The view in the URL and in a graph file's `qParams`: ours, and both dialects of the field (circuit-tracer's page and
// Neuronpedia's), so that a link made there shows the same here. Pure functions: text in, text out.

import { NO_FILTER, emptyView, tidy } from "./store.js";
import { uncantor } from "./scale.js";

/** @typedef {import("./store.js").View} View */
/** What a link may hold that is no part of the view. @typedef {{logitDiff: [string, string]|null, feature: string|null}} Extra */

const KINDS = ["feature", "error", "token", "target", "context"];

/** @param {unknown} value @returns {string[]} a list as such or as `a,b` */
function list(value) {
  if (Array.isArray(value)) return value.filter((x) => typeof x === "string" && x !== "");
  return typeof value === "string" ? value.split(",").filter((x) => x !== "") : [];
}

/** JSON given as such or as text; nothing if it is broken. @param {unknown} value @returns {unknown} */
function json(value) {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return undefined;
  }
}

/** `[["name", "id", …], …]`. @param {unknown} value */
function readGroups(value) {
  const groups = json(value);
  if (!Array.isArray(groups)) return [];
  return groups.flatMap((group) => {
    if (!Array.isArray(group) || typeof group[0] !== "string") return [];
    return [{ name: group[0], ids: list(group.slice(1)) }];
  });
}

/**
 * Labels: `[["1234", "x"]]` with the Cantor number of a feature (circuit-tracer), `[["0_1234_7", "x"]]` with layer, Cantor
 * number and position (Neuronpedia), `[["0_39", "x"]]` or `{"0_39": "x"}` (ours).
 * @param {unknown} value @returns {Record<string, string>} by `layer_feature`
 */
export function readLabels(value) {
  const raw = json(value);
  /** @type {Record<string, string>} */
  const labels = {};
  if (!raw || typeof raw !== "object") return labels;
  const pairs = Array.isArray(raw) ? raw : Object.entries(raw);
  for (const pair of pairs) {
    if (!Array.isArray(pair) || typeof pair[1] !== "string") continue;
    const key = featureKey(String(pair[0]));
    if (key) labels[key] = pair[1];
  }
  return labels;
}

/** @param {string} key */
function featureKey(key) {
  if (/^\d{1,15}$/.test(key)) return uncantor(Number(key)).join("_");
  const match = /^(\d{1,6})_(\d{1,15})(_\d{1,9})?$/.exec(key);
  if (!match) return null;
  const layer = Number(match[1]);
  if (match[3] === undefined) return `${layer}_${match[2]}`;
  const [x, y] = uncantor(Number(match[2]));
  return x === layer ? `${x}_${y}` : `${layer}_${match[2]}`;
}

/** A share in 0..1, or null. @param {unknown} value */
function share(value) {
  if (value === null || value === undefined || value === "") return null;
  const x = Number(value);
  return Number.isFinite(x) && x >= 0 && x <= 1 ? x : null;
}

/** `2-7`, `2-` or `-7`. @param {unknown} value @returns {[number, number]|null} */
function range(value) {
  const match = /^(\d{1,7})-(\d{1,7})$/.exec(String(value ?? ""));
  return match ? [Number(match[1]), Number(match[2])] : null;
}

/** `id:x:y` joined by spaces. @param {unknown} value @returns {Record<string, [number, number]>} */
function readPlaces(value) {
  /** @type {Record<string, [number, number]>} */
  const places = {};
  if (value && typeof value === "object" && !Array.isArray(value)) {
    for (const [key, place] of Object.entries(value)) {
      if (Array.isArray(place) && place.length === 2 && place.every(Number.isFinite)) places[key] = [place[0], place[1]];
    }
    return places;
  }
  for (const part of String(value ?? "").split(" ")) {
    const match = /^(.+):(-?\d+):(-?\d+)$/.exec(part);
    if (!match) continue;
    try {
      places[decodeURIComponent(match[1])] = [Number(match[2]), Number(match[3])];
    } catch {
      // A place that cannot be read is a box where the layout puts it.
    }
  }
  return places;
}

/** @param {Record<string, [number, number]>} places */
const writePlaces = (places) =>
  Object.entries(places)
    .map(([key, [x, y]]) => `${encodeURIComponent(key)}:${Math.round(x)}:${Math.round(y)}`)
    .join(" ");

/** @param {unknown} value @returns {import("./store.js").Change[]} */
export function readPlan(value) {
  const raw = json(value);
  if (!Array.isArray(raw)) return [];
  return raw.flatMap((/** @type {any} */ entry) => {
    /** @type {import("./store.js").Change[]} */
    const none = [];
    if (!entry || typeof entry !== "object") return none;
    const place =
      typeof entry.node === "string"
        ? { node: entry.node }
        : typeof entry.supernode === "string"
          ? { supernode: entry.supernode }
          : null;
    if (!place) return none;
    if (entry.ablate === true) return none.concat({ ...place, ablate: true });
    if (Number.isFinite(entry.set)) return none.concat({ ...place, set: entry.set });
    return Number.isFinite(entry.scale) ? none.concat({ ...place, scale: entry.scale }) : none;
  });
}

const MODE = /^(free|frozen_attention|frozen_norms|direct|constrained:\d{1,4}\.\.\d{1,4})$/;

/**
 * The parts of the view that a record of parameters names (a URL's, or a file's `qParams`, with lists as lists or as text).
 * @param {Record<string, unknown>} params @returns {Partial<View>}
 */
export function readParams(params) {
  /** @type {Partial<View>} */
  const view = {};
  if (typeof params.slug === "string") view.slug = params.slug;
  if (params.clickedId !== undefined)
    view.clicked = typeof params.clickedId === "string" && params.clickedId !== "" ? params.clickedId : null;
  if (params.pinnedIds !== undefined) view.pinned = list(params.pinnedIds);
  if (params.hiddenIds !== undefined) view.hidden = list(params.hiddenIds);
  if (params.supernodes !== undefined) {
    view.groups = readGroups(params.supernodes);
    const members = view.groups.flatMap((group) => group.ids);
    view.pinned = [...new Set([...(view.pinned ?? []), ...members])];
  }
  if (params.clerps !== undefined) view.labels = readLabels(params.clerps);
  if (params.layout !== undefined) view.places = readPlaces(params.layout);
  if (typeof params.note === "string") view.note = params.note;
  if (params.pruningThreshold !== undefined) view.nodeThreshold = share(params.pruningThreshold);
  if (params.edgeThreshold !== undefined) view.edgeThreshold = share(params.edgeThreshold);
  if (typeof params.compare === "string") view.other = params.compare || null;
  if (typeof params.tab === "string" && ["node", "whatif", "compare"].includes(params.tab)) view.tab = params.tab;
  if (params.plan !== undefined) view.plan = readPlan(params.plan);
  if (typeof params.mode === "string" && MODE.test(params.mode)) view.mode = params.mode;
  const filter = {
    kinds: list(params.without).filter((kind) => KINDS.includes(kind)),
    layers: range(params.layers),
    positions: range(params.positions),
    text: typeof params.text === "string" ? params.text : "",
    minShare: share(params.minShare) ?? 0,
  };
  if (JSON.stringify(filter) !== JSON.stringify(NO_FILTER)) view.filter = filter;
  return view;
}

/**
 * @param {string} search a URL's query
 * @returns {{view: Partial<View>, extra: Extra}}
 */
export function readUrl(search) {
  /** @type {Record<string, string>} */
  const params = Object.create(null);
  for (const [key, value] of parse(search)) params[key] = value;
  const diff = String(params.logitDiff ?? "").split("__vs__");
  return {
    view: readParams(params),
    extra: {
      logitDiff: diff.length === 2 && diff[0] && diff[1] ? [diff[0], diff[1]] : null,
      feature: params.feature ?? null,
    },
  };
}

/** URLSearchParams, where a `%` that begins no escape is a `%`. @param {string} search @returns {[string, string][]} */
function parse(search) {
  const whole = search.replace(/^\?/, "").replace(/%(?![0-9a-fA-F]{2})/g, "%25");
  return [...new URLSearchParams(whole)];
}

/** The view as parameters, all texts; what says nothing is left out. @param {View} view */
export function writeParams(view) {
  /** @type {Record<string, string>} */
  const out = {};
  const filter = view.filter;
  if (view.slug) out.slug = view.slug;
  if (view.clicked) out.clickedId = view.clicked;
  if (view.pinned.length) out.pinnedIds = view.pinned.join(",");
  if (view.hidden.length) out.hiddenIds = view.hidden.join(",");
  if (view.groups.length) out.supernodes = JSON.stringify(view.groups.map((group) => [group.name, ...group.ids]));
  if (Object.keys(view.labels).length) out.clerps = JSON.stringify(Object.entries(view.labels));
  if (Object.keys(view.places).length) out.layout = writePlaces(view.places);
  if (view.note) out.note = view.note;
  if (view.nodeThreshold !== null) out.pruningThreshold = String(view.nodeThreshold);
  if (view.edgeThreshold !== null) out.edgeThreshold = String(view.edgeThreshold);
  if (view.other) out.compare = view.other;
  if (view.tab !== "node") out.tab = view.tab;
  if (view.plan.length) out.plan = JSON.stringify(view.plan);
  if (view.mode !== "free") out.mode = view.mode;
  if (filter.kinds.length) out.without = filter.kinds.join(",");
  if (filter.layers) out.layers = filter.layers.join("-");
  if (filter.positions) out.positions = filter.positions.join("-");
  if (filter.text) out.text = filter.text;
  if (filter.minShare) out.minShare = String(filter.minShare);
  return out;
}

/** @param {View} view */
export function writeUrl(view) {
  const text = new URLSearchParams(writeParams(view)).toString();
  // What needs no escape in a query stays readable.
  return text ? `?${text.replace(/%2C/g, ",").replace(/%3A/g, ":")}` : "";
}

/** @param {Partial<View>} part */
export const asView = (part) => tidy({ ...emptyView(part.slug ?? ""), ...part });
