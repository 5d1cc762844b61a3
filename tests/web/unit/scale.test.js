import assert from "node:assert/strict";
import { test } from "node:test";
import {
  cantor,
  change,
  count,
  linear,
  num,
  percent,
  probability,
  shorten,
  signed,
  ticks,
  uncantor,
  visible,
} from "../../../web/scale.js";
import { quote } from "../../../web/whatif.js";

test("scales_go_there_and_back", () => {
  const scale = linear([2, 4], [10, 50]);
  assert.equal(scale(3), 30);
  assert.equal(scale.invert(30), 3);
  assert.equal(linear([5, 5], [0, 10])(5), 5);
});

test("ticks_are_round_and_within", () => {
  assert.deepEqual(ticks(0, 10), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(ticks(-1, 2, 6), [-1, -0.5, 0, 0.5, 1, 1.5, 2]);
  assert.deepEqual(ticks(0, 0.3, 3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(ticks(3, 3), [3]);
  assert.deepEqual(ticks(NaN, 1), []);
  for (let k = 0; k < 200; k++) {
    const low = Math.sin(k) * 10 ** (k % 7),
      high = low + Math.abs(Math.cos(k)) * 10 ** (k % 5) + 1e-3;
    const got = ticks(low, high, 5);
    assert.ok(
      got.length <= 12 &&
        got.every((x) => x >= low - 1e-6 * Math.abs(high - low) && x <= high + 1e-6 * Math.abs(high - low)),
      `${low} ${high} ${got}`,
    );
  }
});

test("numbers_are_short_and_minus_is_a_minus", () => {
  assert.equal(num(0), "0");
  assert.equal(num(-24.857), "−24.9");
  assert.equal(num(0.0123), "0.0123");
  assert.equal(num(12345.6), "12,346");
  assert.equal(num(NaN), "–");
  assert.equal(num(null), "–");
  assert.equal(signed(1.5), "+1.50");
  assert.equal(count(219724), "219,724");
  assert.equal(percent(0.543), "54 %");
  assert.equal(percent(0.0123), "1.2 %");
  assert.equal(percent(0.00001), "<0.1 %");
  assert.equal(probability(0.00001), "<0.001");
  assert.equal(probability(0), "0.000");
});

test("changes_are_in_per_cent_of_what_was", () => {
  assert.equal(change(10, 5), "−50 %");
  assert.equal(change(10, 0), "−100 %");
  assert.equal(change(0, 3), "new");
  assert.equal(change(0, 0), "0 %");
  assert.equal(change(1, 1), "±0 %");
  assert.equal(change(1, 100), "+999 %…");
});

test("cantors_pairing_is_that_of_the_format", () => {
  assert.equal(cantor(0, 82), 3485);
  assert.equal(cantor(2, 3), 18);
  for (const pair of [
    [0, 0],
    [0, 1],
    [25, 16383],
    [61, 524287],
    [3, 955],
    [127, 1_000_000],
  ])
    assert.deepEqual(uncantor(cantor(pair[0], pair[1])), pair);
});

test("odd_tokens_can_be_seen_and_do_nothing", () => {
  assert.equal(visible("\n"), "⏎");
  assert.equal(visible(" a\tb"), "\u00a0a⇥b");
  assert.equal(visible(""), "∅");
  assert.equal(visible("a\u202eb\u0000"), "a\\u202eb\\u0000");
  assert.equal(shorten("😀😀😀😀", 3), "😀😀…");
});

test("command_lines_are_quoted_for_a_shell", () => {
  assert.equal(quote("0_39_7"), "0_39_7");
  assert.equal(quote("The capital is"), '"The capital is"');
  assert.equal(quote("it's $HOME"), `'it'\\''s $HOME'`);
  assert.equal(quote("a`b"), "'a`b'");
});
