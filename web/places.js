// Where nodes stand in the link graph: a column for each token, a row for each layer, the strongest of a cell first.

import { clamp } from "./scale.js";

/** @typedef {import("./graph.js").Graph} Graph */

/** Where everything stands at zoom 1, in pixels of the plot. */
export class Places {
  /** @param {Graph} graph @param {number[]} shown @param {number} width @param {number} height */
  constructor(graph, shown, width, height) {
    const rows = graph.nLayers + 2;
    const nPos = Math.max(1, graph.tokens.length);
    this.rowHeight = height / rows;
    this.x = new Float32Array(graph.n).fill(NaN);
    this.y = new Float32Array(graph.n).fill(NaN);
    /** @type {Map<number, number[]>} */
    const cells = new Map();
    const busiest = new Float64Array(nPos);
    for (const n of shown) {
      const key = graph.row(n) * nPos + clamp(graph.pos[n], 0, nPos - 1);
      const cell = cells.get(key);
      if (cell) cell.push(n);
      else cells.set(key, [n]);
    }
    for (const [key, cell] of cells) busiest[key % nPos] = Math.max(busiest[key % nPos], cell.length);
    // Columns are as wide as their busiest cell asks for, in moderation.
    const weights = Array.from(busiest, (most) => 1.2 + Math.min(8, Math.sqrt(most)));
    const sum = weights.reduce((a, b) => a + b, 0);
    this.start = new Float64Array(nPos + 1);
    for (let p = 0; p < nPos; p++) this.start[p + 1] = this.start[p] + (weights[p] / sum) * width;
    for (const [key, cell] of cells) {
      const pos = key % nPos;
      const row = Math.floor(key / nPos);
      if (cell.length > 1) {
        cell.sort(
          (a, b) =>
            (graph.kind[a] === 3 ? graph.probability[b] - graph.probability[a] : graph.cut.share[b] - graph.cut.share[a]) ||
            a - b,
        );
      }
      const room = (this.start[pos + 1] - this.start[pos]) * 0.92 - 6;
      const lines = clamp(Math.ceil((cell.length * 5) / Math.max(5, room)), 1, Math.max(1, Math.floor(this.rowHeight / 5)));
      const perLine = Math.ceil(cell.length / lines);
      const gap = Math.min(16, room / Math.max(1, perLine));
      const middle = (this.start[pos] + this.start[pos + 1]) / 2;
      cell.forEach((n, i) => {
        const line = Math.floor(i / perLine);
        const inLine = Math.min(perLine, cell.length - line * perLine);
        this.x[n] = middle + ((i % perLine) - (inLine - 1) / 2) * gap;
        this.y[n] = height - (row + (line + 1) / (lines + 1)) * this.rowHeight;
      });
    }
  }
}
