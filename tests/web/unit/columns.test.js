import assert from "node:assert/strict";
import { test } from "node:test";
import { readColumns, writeColumns } from "../../../web/columns.js";
import { readCut } from "../../../web/graph.js";

const columns = {
  u8: Uint8Array.of(1, 2, 3),
  i32: Int32Array.of(-1, 5),
  f32: Float32Array.of(0.5, NaN, -3),
  u16: Uint16Array.of(65535),
  u32: Uint32Array.of(4294967295),
  none: new Float32Array(0),
};
const bytes = () => writeColumns(columns, { cut: '{"a":"é"}' }).buffer;

test("columns_come_back_as_they_went", () => {
  const { columns: back, meta } = readColumns(/** @type {ArrayBuffer} */ (bytes()));
  for (const [name, column] of Object.entries(columns)) assert.deepEqual(back[name], column, name);
  assert.equal(meta.cut, '{"a":"é"}');
});

test("columns_that_are_not_aligned_are_read_too", () => {
  const header = JSON.stringify({ a: { dtype: "F32", shape: [1], data_offsets: [1, 5] } });
  const buffer = new ArrayBuffer(8 + header.length + 5);
  new DataView(buffer).setUint32(0, header.length, true);
  new Uint8Array(buffer, 8).set(new TextEncoder().encode(header));
  new DataView(buffer).setFloat32(8 + header.length + 1, 2.5, true);
  assert.deepEqual(readColumns(buffer).columns.a, Float32Array.of(2.5));
});

test("files_that_are_cut_or_lie_are_refused", () => {
  const whole = /** @type {ArrayBuffer} */ (bytes());
  for (const length of [0, 7, 8, 20, whole.byteLength - 1])
    assert.throws(() => readColumns(whole.slice(0, length)), `${length} bytes`);
  const long = whole.slice(0);
  new DataView(long).setUint32(4, 1, true);
  assert.throws(() => readColumns(long), /more than 4 G/);
  const make = (/** @type {unknown} */ header) => {
    const text = new TextEncoder().encode(JSON.stringify(header));
    const buffer = new ArrayBuffer(8 + text.length + 16);
    new DataView(buffer).setUint32(0, text.length, true);
    new Uint8Array(buffer, 8).set(text);
    return buffer;
  };
  assert.throws(() => readColumns(make({ a: { dtype: "F32", shape: [4], data_offsets: [0, 15] } })));
  assert.throws(() => readColumns(make({ a: { dtype: "F32", shape: [400], data_offsets: [0, 1600] } })));
  assert.throws(() => readColumns(make({ a: { dtype: "F32", shape: [1], data_offsets: [-4, 0] } })));
  assert.throws(() => readColumns(make({ a: { dtype: "X9", shape: [1], data_offsets: [0, 4] } })), /X9/);
});

const cut = () => ({
  columns: {
    node: Uint32Array.of(1, 4, 6),
    node_share: Float32Array.of(0.1, 0.5, 1),
    row_start: Uint32Array.of(0, 0, 1, 3),
    source: Uint32Array.of(1, 4, 1),
    weight: Float32Array.of(-2, 3, 0.5),
    share: Float32Array.of(1, 0.9, 0.1),
  },
  meta: { cut: '{"n_nodes":3}', n_links: "9", weight_total: "11", weight_shown: "5.5" },
});

test("rows_of_inputs_become_links_strongest_first", () => {
  const got = readCut(cut(), 7);
  assert.deepEqual([...got.source], [4, 1, 1]);
  assert.deepEqual([...got.target], [6, 4, 6]);
  assert.deepEqual([...got.weight], [3, -2, 0.5]);
  assert.deepEqual([...got.has], [0, 1, 0, 0, 1, 0, 1]);
  assert.equal(got.nLinks, 9);
  assert.equal(got.weightShown, 0.5);
});

test("a_cut_with_nodes_that_the_graph_has_not_is_refused", () => {
  assert.throws(() => readCut(cut(), 6), /node 6 of 6/);
});
