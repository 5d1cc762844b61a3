import assert from "node:assert/strict";
import { test } from "node:test";
import { Store, emptyView, freeName, makeGroup, renameGroup, tidy, togglePin, ungroup } from "../../../web/store.js";

const store = () => new Store(emptyView("g"));

test("undo_and_redo_walk_the_story_and_leave_the_rest", () => {
  const s = store();
  s.set((v) => togglePin(v, "a"));
  s.set((v) => togglePin(v, "b"));
  s.set({ clicked: "b", nodeThreshold: 0.5 });
  assert.equal(s.undo(), true);
  assert.deepEqual(s.view.pinned, ["a"]);
  assert.equal(s.view.clicked, "b");
  assert.equal(s.view.nodeThreshold, 0.5);
  assert.equal(s.redo(), true);
  assert.deepEqual(s.view.pinned, ["a", "b"]);
  assert.equal(s.redo(), false);
  s.undo();
  s.set((v) => togglePin(v, "c"));
  assert.equal(s.redo(), false, "a new change ends what could be redone");
});

test("a_drag_is_one_step", () => {
  const s = store();
  for (let i = 0; i < 30; i++) s.set({ places: { a: [i, 0] } }, "drag 1");
  for (let i = 0; i < 30; i++) s.set({ places: { a: [i, 5] } }, "drag 2");
  s.undo();
  assert.deepEqual(s.view.places, { a: [29, 0] });
  s.undo();
  assert.deepEqual(s.view.places, {});
  assert.equal(s.undo(), false);
});

test("views_are_never_changed_in_place", () => {
  const s = store();
  const before = s.view;
  const text = JSON.stringify(before);
  s.set((v) => makeGroup(v, ["a", "b"], "n"));
  s.set((v) => renameGroup(v, "n", "m"));
  s.set((v) => ungroup(v, "m"));
  assert.equal(JSON.stringify(before), text);
});

test("listeners_hear_of_changes_only", () => {
  const s = store();
  let heard = 0;
  const stop = s.subscribe(() => heard++);
  s.set({ clicked: null });
  assert.equal(heard, 0);
  s.set({ clicked: "x" });
  assert.equal(heard, 1);
  stop();
  s.set({ clicked: "y" });
  assert.equal(heard, 1);
});

test("a_node_is_in_one_group_and_pinned", () => {
  let v = emptyView();
  v = tidy({ ...v, ...makeGroup(v, ["a", "b", "c"], "one") });
  v = tidy({ ...v, ...makeGroup(v, ["c", "d"], "two") });
  assert.deepEqual(v.groups, [
    { name: "one", ids: ["a", "b"] },
    { name: "two", ids: ["c", "d"] },
  ]);
  assert.deepEqual([...v.pinned].sort(), ["a", "b", "c", "d"]);
  v = tidy({ ...v, ...togglePin(v, "a") });
  v = tidy({ ...v, ...togglePin(v, "b") });
  assert.deepEqual(
    v.groups.map((g) => g.name),
    ["two"],
    "an empty group is gone",
  );
});

test("names_of_groups_differ", () => {
  assert.equal(freeName("x", new Set(["x", "x 2"])), "x 3");
  let v = emptyView();
  v = tidy({ ...v, ...makeGroup(v, ["a"], "n") });
  v = tidy({ ...v, ...makeGroup(v, ["b"], "n") });
  assert.deepEqual(
    v.groups.map((g) => g.name),
    ["n", "n 2"],
  );
  v = tidy({ ...v, ...renameGroup(v, "n 2", "n") });
  assert.equal(new Set(v.groups.map((g) => g.name)).size, 2);
});

test("a_renamed_group_keeps_its_place", () => {
  const v = { ...emptyView(), ...makeGroup(emptyView(), ["a"], "n"), places: { "group:n": [1, 2] } };
  assert.deepEqual(renameGroup(v, "n", "m").places, { "group:m": [1, 2] });
});

test("what_is_hidden_is_not_pinned", () => {
  assert.deepEqual(tidy({ ...emptyView(), pinned: ["a", "b"], hidden: ["b"] }).pinned, ["a"]);
});
