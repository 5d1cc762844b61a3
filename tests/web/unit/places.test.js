import assert from "node:assert/strict";
import { test } from "node:test";
import { Places } from "../../../web/places.js";

/** A graph of `n` nodes with what Places asks of one. @param {number} n */
function graph(n, nLayers = 6, nPos = 5) {
  const kind = Uint8Array.from({ length: n }, (_, i) => (i < nPos ? 2 : i >= n - 3 ? 3 : i % 11 === 0 ? 1 : 0));
  const layer = Int32Array.from({ length: n }, (_, i) => (kind[i] === 2 ? -1 : kind[i] === 3 ? nLayers : (i * 7) % nLayers));
  const pos = Int32Array.from({ length: n }, (_, i) =>
    i < nPos ? i : kind[i] === 3 ? nPos - 1 : 1 + ((i * 13) % (nPos - 1)),
  );
  return {
    n,
    nLayers,
    kind,
    layer,
    pos,
    tokens: Array.from({ length: nPos }, (_, i) => `t${i}`),
    probability: Float32Array.from({ length: n }, (_, i) => i / n),
    cut: { share: Float32Array.from({ length: n }, (_, i) => 1 / (i + 1)) },
    row: (/** @type {number} */ i) => (kind[i] === 2 ? 0 : kind[i] === 3 ? nLayers + 1 : layer[i] + 1),
  };
}

for (const n of [20, 400, 4000]) {
  test(`every_node_of_${n}_stands_in_its_row_and_column`, () => {
    const g = graph(n);
    const all = Array.from({ length: n }, (_, i) => i);
    const places = new Places(/** @type {any} */ (g), all, 800, 400);
    for (const i of all) {
      assert.ok(places.x[i] >= places.start[g.pos[i]] && places.x[i] <= places.start[g.pos[i] + 1], `x of ${i}`);
      const top = 400 - (g.row(i) + 1) * places.rowHeight;
      assert.ok(places.y[i] >= top - 1e-3 && places.y[i] <= top + places.rowHeight + 1e-3, `y of ${i}`);
    }
    assert.equal(
      new Set(all.map((i) => `${places.x[i].toFixed(3)} ${places.y[i].toFixed(3)}`)).size,
      n,
      "no two at one place",
    );
    assert.ok(Math.abs(places.start[5] - 800) < 1e-6);
  });
}

test("what_is_not_shown_has_no_place", () => {
  const places = new Places(/** @type {any} */ (graph(20)), [1, 2, 3], 800, 400);
  assert.ok(Number.isNaN(places.x[7]) && Number.isFinite(places.x[2]));
});

test("a_graph_without_nodes_is_drawn_empty", () => {
  assert.equal(new Places(/** @type {any} */ (graph(20)), [], 100, 50).start[5], 100);
});
