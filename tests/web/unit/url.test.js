import assert from "node:assert/strict";
import { test } from "node:test";
import { cantor } from "../../../web/scale.js";
import { emptyView } from "../../../web/store.js";
import { asView, readLabels, readParams, readPlan, readUrl, writeParams, writeUrl } from "../../../web/url.js";

const full = () =>
  asView({
    ...emptyView("dallas"),
    pinned: ["0_39_7", "3_955_8", "E_2859_7"],
    hidden: ["0_90_2"],
    groups: [{ name: 'Texas & "friends", 50 % off', ids: ["0_39_7", "3_955_8"] }],
    labels: { "0_39": "100% <b>Texas</b>", "3_955": "a%2Fb" },
    places: { 'group:Texas & "friends", 50 % off': [10, -20], E_2859_7: [3, 4] },
    note: "line\nline",
    clicked: "0_39_7",
    nodeThreshold: 0.65,
    edgeThreshold: 0.9,
    filter: { kinds: ["error"], layers: [1, 3], positions: [2, 8], text: "cap & ital", minShare: 0.02 },
    other: "oakland",
    tab: "whatif",
    plan: [
      { node: "0_39_7", ablate: true },
      { supernode: 'Texas & "friends", 50 % off', scale: -2 },
      { node: "0_303_7", set: 13.87 },
    ],
    mode: "constrained:0..3",
  });

test("a_link_reproduces_the_view", () => {
  assert.deepEqual(readUrl(writeUrl(full())).view, full());
  assert.deepEqual(asView(readUrl(writeUrl(emptyView("x"))).view), emptyView("x"));
});

test("an_empty_view_writes_an_empty_query", () => {
  assert.equal(writeUrl(emptyView()), "");
});

test("circuit_tracers_links_are_read", () => {
  const number = cantor(3, 955);
  const { view, extra } = readUrl(
    `?slug=g&pinnedIds=0_39_7,3_955_8&clickedId=3_955_8&supernodes=${encodeURIComponent('[["capital","0_90_2","0_656_2"]]')}&clerps=${encodeURIComponent(`[["${number}","say capital"]]`)}&pruningThreshold=0.6&logitDiff=Austin__vs__Dallas`,
  );
  assert.deepEqual(view.pinned, ["0_39_7", "3_955_8", "0_90_2", "0_656_2"]);
  assert.deepEqual(view.groups, [{ name: "capital", ids: ["0_90_2", "0_656_2"] }]);
  assert.deepEqual(view.labels, { "3_955": "say capital" });
  assert.equal(view.nodeThreshold, 0.6);
  assert.equal(view.clicked, "3_955_8");
  assert.deepEqual(extra.logitDiff, ["Austin", "Dallas"]);
});

test("neuronpedias_labels_are_read", () => {
  assert.deepEqual(readLabels(`[["3_${cantor(3, 955)}_8","x"],["0_39_7","y"]]`), { "3_955": "x", "0_39": "y" });
});

test("lists_are_read_as_lists_and_as_text", () => {
  assert.deepEqual(readParams({ pinnedIds: ["a", "b"] }).pinned, ["a", "b"]);
  assert.deepEqual(readParams({ pinnedIds: "a,b" }).pinned, ["a", "b"]);
  assert.deepEqual(readParams({ supernodes: [["n", "a"]] }).groups, readParams({ supernodes: '[["n","a"]]' }).groups);
});

test("a_percent_sign_that_begins_no_escape_is_one", () => {
  assert.equal(readUrl("?text=100%25&note=50% of").view.note, "50% of");
  assert.equal(readUrl("?note=%").view.note, "%");
});

test("nonsense_is_left_out_and_never_thrown", () => {
  for (const text of [
    "?supernodes=[",
    "?supernodes=null",
    '?supernodes=[[1,2],["a",5],{}]',
    '?clerps={"a":1}',
    '?clerps=[[{},"x"]]',
    "?pruningThreshold=7",
    "?pruningThreshold=abc",
    "?layers=9",
    "?layout=a:b",
    "?layout=%E0%A4%A:1:2",
    '?plan=[1,null,{"node":5},{"node":"a"}]',
    "?tab=evil",
    "?mode=x",
    "?__proto__=1",
    "?without=x,feature",
  ]) {
    const view = asView(readUrl(text).view);
    assert.equal(writeUrl(view).includes("undefined"), false, text);
    assert.equal(view.nodeThreshold, null, text);
  }
  assert.deepEqual(readPlan('[{"node":"a","set":"x"}]'), []);
  assert.equal(/** @type {any} */ ({}).polluted, undefined);
});

test("what_says_nothing_is_not_in_the_link", () => {
  assert.deepEqual(writeParams({ ...emptyView("s"), clicked: "a" }), { slug: "s", clickedId: "a" });
});
