import assert from "node:assert/strict";
import { test } from "node:test";
import { HitGrid } from "../../../web/grid.js";

const n = 3000;
const wave = (k) => Math.abs(Math.sin(k * 12.9898) * 43758.5453) % 1;
const xs = Float32Array.from({ length: n }, (_, i) => wave(i) * 900 - 100);
const ys = Float32Array.from({ length: n }, (_, i) => wave(i + 0.5) * 500 - 100);

/** All points, one after the other. */
function slow(x, y, radius, which = [...xs.keys()]) {
  let best = -1,
    least = radius * radius;
  for (const i of which) {
    const square = (xs[i] - x) ** 2 + (ys[i] - y) ** 2;
    if (square < least) {
      least = square;
      best = i;
    }
  }
  return best;
}

test("the_grid_finds_what_a_search_of_all_finds", () => {
  const grid = new HitGrid(xs, ys);
  for (let k = 0; k < 500; k++) {
    const x = wave(k + 0.1) * 1100 - 200,
      y = wave(k + 0.2) * 700 - 200,
      radius = [3, 30, 90][k % 3];
    assert.equal(grid.nearest(x, y, radius), slow(x, y, radius), `${x} ${y} ${radius}`);
  }
});

test("only_the_points_that_are_shown_are_hit", () => {
  const which = [...xs.keys()].filter((i) => i % 7 === 0);
  const grid = new HitGrid(xs, ys, which);
  for (let k = 0; k < 200; k++)
    assert.equal(grid.nearest(wave(k) * 800, wave(k + 9) * 400, 30), slow(wave(k) * 800, wave(k + 9) * 400, 30, which));
});

test("nowhere_and_places_that_are_no_numbers", () => {
  assert.equal(new HitGrid([], []).nearest(0, 0, 100), -1);
  const grid = new HitGrid([NaN, 5], [1, 5]);
  assert.equal(grid.nearest(5, 5, 10), 1);
  assert.equal(grid.nearest(500, 5, 10), -1);
});
