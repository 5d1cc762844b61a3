// A graph of any size in the published format, as large models' are: 26 layers, 12 positions. The same numbers each time.

import { writeFileSync } from "node:fs";
import { join } from "node:path";

const LAYERS = 26,
  POSITIONS = 12;

/** A generator of numbers in 0..1, seeded (mulberry32). @param {number} seed */
function random(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const cantor = (x, y) => ((x + y) * (x + y + 1)) / 2 + y;

/**
 * Writes `slug`.json into `folder`.
 * @param {string} folder @param {string} slug @param {number} nNodes @param {number} nLinks
 */
export function writeSynthetic(folder, slug, nNodes, nLinks) {
  const rand = random(7);
  const tokens = Array.from({ length: POSITIONS }, (_, i) => (i === 0 ? "<bos>" : ` word${i}`));
  const nodes = [];
  const node = (fields) =>
    nodes.push({ run_idx: 0, reverse_ctx_idx: 0, token_prob: 0, is_target_logit: false, clerp: "", ...fields });
  for (let p = 0; p < POSITIONS; p++)
    node({
      node_id: `E_${p + 10}_${p}`,
      feature: p,
      layer: "E",
      ctx_idx: p,
      feature_type: "embedding",
      jsNodeId: `E_${p + 10}-${p}`,
      clerp: tokens[p],
    });
  const targets = 6;
  const used = new Set();
  while (nodes.length < nNodes - targets) {
    const layer = Math.floor(rand() ** 1.3 * LAYERS),
      pos = 1 + Math.floor(rand() * (POSITIONS - 1)),
      feature = Math.floor(rand() * 16384);
    const id = `${layer}_${feature}_${pos}`;
    if (used.has(id)) continue;
    used.add(id);
    node({
      node_id: id,
      feature: cantor(layer, feature),
      layer: String(layer),
      ctx_idx: pos,
      feature_type: "cross layer transcoder",
      jsNodeId: `${layer}_${feature}-0`,
      clerp: rand() < 0.3 ? `thing ${feature}` : "",
      activation: Number((rand() * 40).toFixed(3)),
      influence: Number(rand().toFixed(5)),
    });
  }
  for (let t = 0; t < targets; t++)
    node({
      node_id: `${LAYERS + 1}_${1000 + t}_${POSITIONS - 1}`,
      feature: 1000 + t,
      layer: String(LAYERS + 1),
      ctx_idx: POSITIONS - 1,
      feature_type: "logit",
      jsNodeId: `L_${1000 + t}-${POSITIONS - 1}`,
      token_prob: 0.6 / 2 ** t,
      is_target_logit: t === 0,
      clerp: `Output " answer${t}" (p=${(0.6 / 2 ** t).toFixed(3)})`,
    });
  const depth = (n) => (n.layer === "E" ? -1 : Number(n.layer));
  const order = nodes.map((_, i) => i).sort((a, b) => depth(nodes[a]) - depth(nodes[b]));
  const links = [];
  const seen = new Set();
  while (links.length < nLinks) {
    const j = Math.floor(rand() * order.length),
      i = Math.floor(rand() * j);
    const source = nodes[order[i]],
      target = nodes[order[j]];
    if (depth(source) >= depth(target) || target.layer === "E" || source.ctx_idx > target.ctx_idx) continue;
    const key = order[i] * nodes.length + order[j];
    if (seen.has(key)) continue;
    seen.add(key);
    links.push({
      source: source.node_id,
      target: target.node_id,
      weight: Number(((rand() - 0.4) * 10 ** (-2.5 * rand())).toPrecision(5)),
    });
  }
  const metadata = {
    slug,
    scan: "synthetic",
    prompt_tokens: tokens,
    prompt: tokens.slice(1).join("").trim(),
    node_threshold: 1,
    schema_version: 1,
  };
  writeFileSync(join(folder, `${slug}.json`), JSON.stringify({ metadata, qParams: {}, nodes, links }));
}
