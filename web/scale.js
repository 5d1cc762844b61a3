// From numbers to places, colours and words.

/**
 * @param {[number, number]} domain
 * @param {[number, number]} range
 */
export function linear([d0, d1], [r0, r1]) {
  const span = d1 - d0;
  const k = span === 0 ? 0 : (r1 - r0) / span;
  const scale = (/** @type {number} */ x) => (span === 0 ? (r0 + r1) / 2 : r0 + (x - d0) * k);
  scale.invert = (/** @type {number} */ y) => (k === 0 ? d0 : d0 + (y - r0) / k);
  return scale;
}

/**
 * Round numbers that cover `low..high` in about `count` steps.
 * @param {number} low @param {number} high @param {number} [count]
 * @returns {number[]}
 */
export function ticks(low, high, count = 5) {
  if (!(Number.isFinite(low) && Number.isFinite(high)) || count < 1) return [];
  if (high < low) [low, high] = [high, low];
  if (high === low) return [low];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999) ?? 10 * power;
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    out.push(Number((i * step).toPrecision(12)));
  return out;
}

/** @param {number} x @param {number} low @param {number} high */
export const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

const MINUS = "\u2212";

/**
 * A number in few characters: three digits that count, a true minus sign.
 * @param {number|null|undefined} x
 */
export function num(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : `${MINUS}∞`;
  const a = Math.abs(x);
  let text;
  if (a === 0) text = "0";
  else if (a >= 1e6 || a < 1e-4) text = a.toExponential(1);
  else if (a >= 1000) text = count(Math.round(a));
  else text = a.toFixed(Math.min(4, Math.max(0, digits - 1 - Math.floor(Math.log10(a)))));
  return x < 0 ? MINUS + text : text;
}

/** With its sign. @param {number|null|undefined} x */
export const signed = (x, digits = 3) => (x !== null && x !== undefined && x > 0 ? `+${num(x, digits)}` : num(x, digits));

/** 219724 → 219,724. @param {number} n */
export function count(n) {
  return String(Math.round(n)).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** A share in per cent. @param {number|null|undefined} x in 0..1 */
export function percent(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const p = 100 * x;
  const a = Math.abs(p);
  const text = a === 0 ? "0" : a < 0.1 ? "<0.1" : a < 10 ? a.toFixed(1) : a.toFixed(0);
  return `${p < 0 ? MINUS : ""}${text} %`;
}

/** A probability. @param {number|null|undefined} p */
export function probability(p) {
  if (p === null || p === undefined || !Number.isFinite(p)) return "–";
  return p > 0 && p < 0.0005 ? "<0.001" : p.toFixed(3);
}

/**
 * Change of an activation in per cent of what it was; from nothing there is no per cent.
 * @param {number} before @param {number} after
 */
export function change(before, after) {
  if (before === 0) return after === 0 ? "0 %" : "new";
  const p = Math.round((100 * (after - before)) / Math.abs(before));
  if (p > 999) return "+999 %…";
  return p > 0 ? `+${p} %` : p < 0 ? `${MINUS}${-p} %` : "±0 %";
}

/**
 * Thickness and opacity of a link by its weight against the largest.
 * @param {number} weight @param {number} largest
 */
export function linkStrength(weight, largest) {
  return largest > 0 ? clamp(Math.sqrt(Math.abs(weight) / largest), 0.04, 1) : 0.04;
}

/** Number of one (layer, feature): CT's files hold it. @param {number} x @param {number} y */
export const cantor = (x, y) => ((x + y) * (x + y + 1)) / 2 + y;

/** @param {number} z @returns {[number, number]} layer and feature */
export function uncantor(z) {
  let w = Math.floor((Math.sqrt(8 * z + 1) - 1) / 2);
  if ((w * (w + 1)) / 2 > z) w--;
  if (((w + 1) * (w + 2)) / 2 <= z) w++;
  const y = z - (w * (w + 1)) / 2;
  return [w - y, y];
}

/**
 * A token as it can be seen: line ends and other blanks as signs.
 * @param {string} text
 */
export function visible(text) {
  if (text === "") return "∅";
  return text
    .replace(/\n/g, "⏎")
    .replace(/\r/g, "␍")
    .replace(/\t/g, "⇥")
    .replace(/^ /, "\u00a0")
    .replace(/ $/, "\u00a0")
    .replace(
      /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g,
      (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
}

/** A token in quotes, for sentences. @param {string} text */
export const quoted = (text) =>
  `“${
    visible(text)
      .replace(/\u00a0/g, " ")
      .trim() || "␣"
  }”`;

/** @param {string} text @param {number} length */
export function shorten(text, length) {
  const all = Array.from(text);
  return all.length <= length
    ? text
    : all
        .slice(0, length - 1)
        .join("")
        .trimEnd() + "…";
}
