// What is under the pointer: points in a grid of cells, so that the nearest of thousands is found in a few looks.

export class HitGrid {
  /**
   * @param {ArrayLike<number>} xs @param {ArrayLike<number>} ys places of the points
   * @param {ArrayLike<number>} [which] the points that can be hit; all, if absent
   * @param {number} [cell] width of a cell
   */
  constructor(xs, ys, which, cell = 24) {
    this.xs = xs;
    this.ys = ys;
    this.cell = cell;
    /** @type {Map<number, number[]>} */
    this.cells = new Map();
    const n = which ? which.length : xs.length;
    for (let k = 0; k < n; k++) {
      const i = which ? which[k] : k;
      if (!Number.isFinite(xs[i]) || !Number.isFinite(ys[i])) continue;
      const key = this.key(Math.floor(xs[i] / cell), Math.floor(ys[i] / cell));
      const list = this.cells.get(key);
      if (list) list.push(i);
      else this.cells.set(key, [i]);
    }
  }

  /** @param {number} cx @param {number} cy */
  key(cx, cy) {
    return (cx + 0x100000) * 0x200000 + (cy + 0x100000);
  }

  /**
   * The nearest point within `radius`, or -1. Of two equally near ones the first.
   * @param {number} x @param {number} y @param {number} radius
   */
  nearest(x, y, radius) {
    let best = -1;
    let bestSquare = radius * radius;
    const x0 = Math.floor((x - radius) / this.cell),
      x1 = Math.floor((x + radius) / this.cell);
    const y0 = Math.floor((y - radius) / this.cell),
      y1 = Math.floor((y + radius) / this.cell);
    for (let cx = x0; cx <= x1; cx++) {
      for (let cy = y0; cy <= y1; cy++) {
        for (const i of this.cells.get(this.key(cx, cy)) ?? []) {
          const square = (this.xs[i] - x) ** 2 + (this.ys[i] - y) ** 2;
          if (square < bestSquare || (square === bestSquare && (best < 0 || i < best))) {
            best = i;
            bestSquare = square;
          }
        }
      }
    }
    return best;
  }
}
