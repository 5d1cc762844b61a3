// A graph as the page holds it: all nodes in columns, the cut that the thresholds keep with its strongest links, and the
// links of single nodes as they were asked for. Links are never objects here, but for those of one node.

import { visible } from "./scale.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./api.js").Thresholds} Thresholds */
/**
 * @typedef {object} Neighbor
 * @property {number} n @property {string} id @property {string} kind @property {number|null} [layer] @property {number} pos
 * @property {string} label @property {number} weight @property {number} share @property {boolean} in_cut
 * @property {number|null} [activation]
 */
/** @typedef {{total: number, weight: number, links: Neighbor[]}} Side */
/**
 * @typedef {object} NodeLinks
 * @property {number} n @property {string} id @property {Side} inputs @property {Side} outputs
 * @property {any} proof
 */
/**
 * @typedef {object} Cut
 * @property {Uint32Array} nodes numbers of the kept nodes, ascending
 * @property {Float32Array} share by node number; 0 outside
 * @property {Uint8Array} has by node number
 * @property {Uint32Array} source @property {Uint32Array} target @property {Float32Array} weight @property {Float32Array} linkShare the strongest links, strongest first
 * @property {any} info scores and counts @property {number} nLinks @property {number} weightShown part of all weight that the links have
 */

export const KINDS = /** @type {const} */ (["feature", "error", "token", "target", "context"]);
const TOP_LINKS = 2000;
const LINKS_OF_NODE = 200;
const MAX_CACHED = 400;

export class Graph {
  /** @param {Api} api @param {any} header @param {import("./columns.js").Table} table */
  constructor(api, header, table) {
    const c = table.columns;
    this.api = api;
    this.header = header;
    /** @type {string} */
    this.id = header.id;
    /** @type {string[]} */
    this.tokens = header.prompt_tokens;
    /** @type {number} */
    this.nLayers = header.n_layers;
    this.layer = /** @type {Int32Array} */ (c.layer);
    this.pos = /** @type {Int32Array} */ (c.pos);
    this.feature = /** @type {Int32Array} */ (c.feature);
    this.activation = /** @type {Float32Array} */ (c.activation);
    this.influence = /** @type {Float32Array} */ (c.influence);
    this.wholeShare = /** @type {Float32Array} */ (c.share);
    this.probability = /** @type {Float32Array} */ (c.probability);
    this.kind = /** @type {Uint8Array} */ (c.kind);
    this.n = this.kind.length;
    this.text = { id: [c.id_start, c.id_text], label: [c.label_start, c.label_text] };
    for (const column of [this.layer, this.pos, this.feature, this.activation, this.wholeShare]) {
      if (column?.length !== this.n) throw new Error("columns of nodes have different lengths");
    }
    /** @type {Map<string, number>|null} */
    this.numbers = null;
    /** Labels that a person gave, by feature. @type {Record<string, string>} */
    this.labels = {};
    /** @type {Cut} */
    this.cut = emptyCut(this.n);
    /** @type {Thresholds} */
    this.at = { node_threshold: null, edge_threshold: null };
    /** @type {Map<number, NodeLinks>} */
    this.links = new Map();
    /** @type {Map<number, Promise<NodeLinks>>} */
    this.asked = new Map();
  }

  /** @param {Api} api @param {string} id @param {Thresholds} at @param {AbortSignal} [signal] */
  static async open(api, id, at, signal) {
    const [header, table, links] = await Promise.all([
      api.graph(id, at, false, signal),
      api.nodes(id, signal),
      api.links(id, at, TOP_LINKS, signal),
    ]);
    const graph = new Graph(api, header, table);
    graph.setCut(links, at);
    return graph;
  }

  /** @param {"id"|"label"} which @param {number} n */
  decode(which, n) {
    const [starts, bytes] = this.text[which];
    return new TextDecoder().decode(/** @type {Uint8Array} */ (bytes).subarray(starts[n], starts[n + 1]));
  }

  /** @param {number} n */
  idOf(n) {
    return this.decode("id", n);
  }

  /** The number of an id; -1 if the graph has no such node. @param {string|null} id */
  numberOf(id) {
    if (id === null) return -1;
    if (!this.numbers) {
      this.numbers = new Map();
      for (let n = 0; n < this.n; n++) this.numbers.set(this.idOf(n), n);
    }
    return this.numbers.get(id) ?? -1;
  }

  /** `layer_feature`, or null. @param {number} n */
  featureKey(n) {
    return this.kind[n] === 0 && this.feature[n] >= 0 ? `${this.layer[n]}_${this.feature[n]}` : null;
  }

  /** What a person or a file calls the node; empty for unnamed features. @param {number} n */
  label(n) {
    const key = this.featureKey(n);
    return (key !== null && this.labels[key]) || this.decode("label", n);
  }

  /** A name for any node. @param {number} n */
  name(n) {
    const label = this.label(n);
    switch (this.kind[n]) {
      case 0:
        return label || `feature ${this.layer[n]}_${this.feature[n]}`;
      case 1:
        return `error of layer ${this.layer[n]}`;
      case 2:
        return label || this.tokens[this.pos[n]] || "";
      default:
        return label || "target";
    }
  }

  /** The name as it is shown, without the blank that most tokens begin with. @param {number} n */
  shown(n) {
    return visible(this.name(n)).trim() || "␣";
  }

  /** Where a node stands: `Dallas@7`. @param {number} n */
  place(n) {
    return `${visible(this.tokens[this.pos[n]] ?? "").trim() || "␣"}@${this.pos[n]}`;
  }

  /** @param {number} n */
  kindOf(n) {
    return KINDS[this.kind[n]] ?? "feature";
  }

  /** Row of the link graph: 0 for tokens, then layers, then targets. @param {number} n */
  row(n) {
    return this.kind[n] === 2 ? 0 : this.kind[n] === 3 ? this.nLayers + 1 : this.layer[n] + 1;
  }

  /** @param {import("./columns.js").Table} table @param {Thresholds} at */
  setCut(table, at) {
    this.at = at;
    this.cut = readCut(table, this.n);
    this.links.clear();
    this.asked.clear();
  }

  /** @param {Thresholds} at @param {AbortSignal} [signal] */
  async prune(at, signal) {
    this.setCut(await this.api.links(this.id, at, TOP_LINKS, signal), at);
  }

  /** The links of a node: those at hand, or a promise of them. @param {number} n @returns {NodeLinks|Promise<NodeLinks>} */
  linksOf(n) {
    const known = this.links.get(n);
    if (known) return known;
    const asked = this.asked.get(n);
    if (asked) return asked;
    const at = this.at;
    const promise = this.api
      .nodeLinks(this.id, n, at, { limit: LINKS_OF_NODE })
      .then((/** @type {NodeLinks} */ links) => {
        if (this.at === at) {
          if (this.links.size >= MAX_CACHED) this.links.delete(/** @type {number} */ (this.links.keys().next().value));
          this.links.set(n, links);
        }
        return links;
      })
      .finally(() => {
        if (this.asked.get(n) === promise) this.asked.delete(n);
      });
    this.asked.set(n, promise);
    return promise;
  }

  /** More of one side of a node's links; false if there are no more. @param {number} n @param {"inputs"|"outputs"} side */
  async moreLinks(n, side) {
    const links = this.links.get(n);
    if (!links || links[side].links.length >= links[side].total) return false;
    const more = await this.api.nodeLinks(this.id, n, this.at, { side, offset: links[side].links.length, limit: 1000 });
    const known = new Set(links[side].links.map((link) => link.n));
    const fresh = more[side].links.filter((/** @type {Neighbor} */ link) => !known.has(link.n));
    links[side].links.push(...fresh);
    return fresh.length > 0;
  }
}

/** @param {number} n @returns {Cut} */
function emptyCut(n) {
  return {
    nodes: new Uint32Array(0),
    share: new Float32Array(n),
    has: new Uint8Array(n),
    source: new Uint32Array(0),
    target: new Uint32Array(0),
    weight: new Float32Array(0),
    linkShare: new Float32Array(0),
    info: {},
    nLinks: 0,
    weightShown: 1,
  };
}

/**
 * Rows of inputs, as they come, to a list of links, strongest first.
 * @param {import("./columns.js").Table} table @param {number} n nodes of the graph
 * @returns {Cut}
 */
export function readCut({ columns: c, meta }, n) {
  const nodes = /** @type {Uint32Array} */ (c.node);
  const starts = /** @type {Uint32Array} */ (c.row_start);
  const m = c.source.length;
  const targets = new Uint32Array(m);
  const cut = emptyCut(n);
  for (let j = 0; j < nodes.length; j++) {
    if (nodes[j] >= n) throw new Error(`the cut has a node ${nodes[j]} of ${n}`);
    cut.share[nodes[j]] = c.node_share[j];
    cut.has[nodes[j]] = 1;
    targets.fill(nodes[j], starts[j], starts[j + 1]);
  }
  const order = Uint32Array.from({ length: m }, (_, i) => i).sort((a, b) => Math.abs(c.weight[b]) - Math.abs(c.weight[a]));
  cut.nodes = nodes;
  cut.source = order.map((i) => c.source[i]);
  cut.target = order.map((i) => targets[i]);
  cut.weight = Float32Array.from(order, (i) => c.weight[i]);
  cut.linkShare = Float32Array.from(order, (i) => c.share[i]);
  cut.info = JSON.parse(meta.cut ?? "{}");
  cut.nLinks = Number(meta.n_links ?? m);
  const total = Number(meta.weight_total ?? 0);
  cut.weightShown = total > 0 ? Number(meta.weight_shown) / total : 1;
  return cut;
}
