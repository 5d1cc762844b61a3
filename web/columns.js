// Columns of numbers as the server sends them: a safetensors file, that is, eight bytes of length, a JSON header, and
// little-endian columns that begin on multiples of their width, so that each is a typed array over the bytes received.

/** @typedef {Uint8Array|Int8Array|Uint16Array|Int16Array|Uint32Array|Int32Array|Float32Array|Float64Array} Column */
/** @typedef {{columns: Record<string, Column>, meta: Record<string, string>}} Table */

/** @type {Record<string, any>} */
const ARRAYS = {
  U8: Uint8Array,
  BOOL: Uint8Array,
  I8: Int8Array,
  U16: Uint16Array,
  I16: Int16Array,
  U32: Uint32Array,
  I32: Int32Array,
  F32: Float32Array,
  F64: Float64Array,
};

/**
 * Reads a safetensors file. Every length is held against the bytes that are there.
 * @param {ArrayBuffer} buffer
 * @returns {Table}
 */
export function readColumns(buffer) {
  if (buffer.byteLength < 8) throw new Error(`columns: ${buffer.byteLength} bytes, expected a header of 8 at least`);
  const view = new DataView(buffer);
  const high = view.getUint32(4, true);
  const length = view.getUint32(0, true);
  const start = 8 + length;
  if (high !== 0 || start > buffer.byteLength) {
    throw new Error(`columns: a header of ${high === 0 ? length : "more than 4 G"} bytes in ${buffer.byteLength}`);
  }
  const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, length)));
  /** @type {Record<string, Column>} */
  const columns = Object.create(null);
  /** @type {Record<string, string>} */
  const meta = Object.create(null);
  Object.assign(meta, header.__metadata__ ?? {});
  for (const [name, tensor] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const Type = ARRAYS[tensor.dtype];
    if (!Type) throw new Error(`columns: \`${name}\` is of type ${tensor.dtype}, which this page does not read`);
    const [begin, end] = tensor.data_offsets;
    const count = tensor.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
    const bytes = count * Type.BYTES_PER_ELEMENT;
    if (!(begin >= 0 && end - begin === bytes && start + end <= buffer.byteLength)) {
      throw new Error(`columns: \`${name}\` has ${count} values of ${Type.BYTES_PER_ELEMENT} bytes at ${begin}..${end}`);
    }
    const aligned = (start + begin) % Type.BYTES_PER_ELEMENT === 0;
    columns[name] = aligned ? new Type(buffer, start + begin, count) : new Type(buffer.slice(start + begin, start + end));
  }
  return { columns, meta };
}

/**
 * The other direction, for tests and the mock server.
 * @param {Record<string, Column>} columns
 * @param {Record<string, string>} [meta]
 * @returns {Uint8Array}
 */
export function writeColumns(columns, meta) {
  /** @type {Record<string, unknown>} */
  const header = meta ? { __metadata__: meta } : {};
  let at = 0;
  const names = Object.keys(columns).sort((a, b) => columns[b].BYTES_PER_ELEMENT - columns[a].BYTES_PER_ELEMENT);
  for (const name of names) {
    const column = columns[name];
    const dtype = Object.keys(ARRAYS).find((key) => column instanceof ARRAYS[key]);
    header[name] = { dtype, shape: [column.length], data_offsets: [at, at + column.byteLength] };
    at += column.byteLength;
  }
  let text = JSON.stringify(header);
  while ((8 + new TextEncoder().encode(text).length) % 8 !== 0) text += " ";
  const head = new TextEncoder().encode(text);
  const out = new Uint8Array(8 + head.length + at);
  new DataView(out.buffer).setUint32(0, head.length, true);
  out.set(head, 8);
  let to = 8 + head.length;
  for (const name of names) {
    const column = columns[name];
    out.set(new Uint8Array(column.buffer, column.byteOffset, column.byteLength), to);
    to += column.byteLength;
  }
  return out;
}
