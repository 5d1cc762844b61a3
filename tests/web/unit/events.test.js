import assert from "node:assert/strict";
import { test } from "node:test";
import { events } from "../../../web/api.js";

/** @param {string} text @param {number} size of the pieces it comes in */
async function read(text, size) {
  const bytes = new TextEncoder().encode(text);
  const stream = new ReadableStream({
    start(c) {
      for (let i = 0; i < bytes.length; i += size) c.enqueue(bytes.slice(i, i + size));
      c.close();
    },
  });
  const out = [];
  for await (const event of events(stream)) out.push(event);
  return out;
}

const TEXT =
  'id: 1\nevent: queued\ndata: {"ahead":2}\n\n: still here\n\nid: 2\r\nevent: token\r\ndata: {"text":" é😀"}\r\n\r\nevent: done\ndata: {\ndata: }\n\nevent: cut';

test("events_are_the_same_however_they_are_cut", async () => {
  const whole = await read(TEXT, 1e6);
  assert.deepEqual(
    whole.map((e) => [e.name, e.id, e.data]),
    [
      ["queued", "1", '{"ahead":2}'],
      ["token", "2", '{"text":" é😀"}'],
      ["done", "2", "{\n}"],
    ],
  );
  for (let size = 1; size < 9; size++) assert.deepEqual(await read(TEXT, size), whole, `pieces of ${size}`);
});
