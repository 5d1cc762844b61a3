"""A real Ray cluster on this machine: a head and two workers, one of which is killed on the way."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import circuitscope as cs
from circuitscope.ray import key_of, read_jsonl, trace_dataset

ray = pytest.importorskip("ray")
ray_data = pytest.importorskip("ray.data")

CITIES = ["Dallas", "Oakland", "Houston", "Lyon", "Miami", "Boston", "Chicago", "Seattle"]
THINGS = ["capital", "language", "name", "city", "state", "river"]
PROMPTS = [f"The {thing} of the state containing {city} is" for city in CITIES for thing in THINGS]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    ray_data.DataContext.get_current().enable_progress_bars = False
    yield made, workers
    ray.shutdown()
    made.shutdown()


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_lost_worker_costs_nothing(cluster, tmp_path: Path) -> None:
    made, workers = cluster
    lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
    # The same twice, and one that cannot be.
    lines += [lines[0], "", json.dumps({"prompt": "The", "targets": ["no such token"]})]
    source, folder = tmp_path / "prompts.jsonl", tmp_path / "graphs"
    source.write_text("\n".join(lines), encoding="utf-8")
    killed: list[tuple[int, int]] = []

    def kill() -> None:
        # Once both have worked for a while.
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            n_done = len(list(folder.glob("*.summary.json"))) if folder.is_dir() else 0
            if n_done >= 8:
                made.remove_node(workers[1], allow_graceful=False)
                killed.append((n_done, len(PROMPTS)))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    summaries = trace_dataset(source, folder, actors=2, batch_size=2, raw=True).take_all()
    thread.join()
    assert killed and killed[0][0] < killed[0][1], "the worker was killed on the way"

    failed = [row for row in summaries if row["error"]]
    assert len(failed) == 1 and "no such token" in failed[0]["error"]
    good = [row for row in summaries if not row["error"]]
    assert sorted(row["prompt"] for row in good) == sorted(PROMPTS), "nothing lost, nothing double"
    assert len({row["key"] for row in summaries}) == len(PROMPTS) + 1
    names = {path.name for path in folder.iterdir()}
    expected = {name for row in good for name in [*row["files"], f"{row['slug']}-{row['key']}.summary.json"]}
    assert names == expected | {"index.jsonl"}, "nothing half written is left"
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in index] == [
        row["key"] for row in sorted(summaries, key=lambda row: (row["slug"], row["key"]))
    ]
    # What came back is what one process computes.
    with cs.Tracer() as tracer:
        for row in good[:: len(good) // 6]:
            graph = tracer.trace(row["prompt"])
            graph.save(tmp_path / "here.safetensors")
            assert (tmp_path / "here.safetensors").read_bytes() == (folder / row["files"][1]).read_bytes()
            graph.prune().save(tmp_path / row["files"][0])
            assert (tmp_path / row["files"][0]).read_bytes() == (folder / row["files"][0]).read_bytes()
            assert row["replacement_score"] == graph.replacement_score and row["n_nodes"] == len(graph.prune())


def test_a_second_run_does_what_is_missing(cluster, tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    records = [{"prompt": prompt, "slug": f"p{at}"} for at, prompt in enumerate(PROMPTS[:6])]
    first = trace_dataset(records, folder, actors=1).take_all()
    assert all(row["is_new"] for row in first)
    before = results(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    gone = next(folder.glob("p3-*.summary.json"))
    torn = next(name for name in folder.glob("p4-*.json") if "summary" not in name.name)
    gone.unlink()
    torn.unlink()
    again = trace_dataset(ray_data.from_items(records), folder, actors=1).take_all()
    assert sorted(row["slug"] for row in again if row["is_new"]) == ["p3", "p4"]
    for name, data in results(folder).items():
        if not name.endswith(".summary.json") and name != "index.jsonl":
            assert data == before[name]
            if not name.startswith(("p3", "p4")):
                assert (folder / name).stat().st_mtime_ns == times[name]
    # Another setting is another result.
    other = trace_dataset(records[:1], folder, actors=1, max_logits=1).take_all()
    assert other[0]["is_new"] and other[0]["key"] != first[0]["key"]


def test_records_have_targets_and_settings(cluster, tmp_path: Path) -> None:
    prompt = PROMPTS[0]
    records = [
        {"prompt": prompt, "targets": [[" Austin", " Sacramento"]], "slug": "Différence / of two"},
        {"prompt": prompt, "targets": [{"feature": "0_39_7"}], "max_features": 5},
        {"tokens": [1, 2, 3], "targets": [5]},
        {"prompt": prompt, "targets": [{"direction": [1.0] * 128, "label": "ones"}]},
        {"prompt": prompt, "targets": [{"attention": "1.0@8:7", "versus": "rivals"}]},
    ]
    rows = trace_dataset(records, tmp_path / "graphs", actors=1).take_all()
    assert not [row["error"] for row in rows if row["error"]]
    assert {'" Austin" - " Sacramento"', "ones"} <= {row["prediction"] for row in rows}
    assert any(row["slug"] == "diff-rence-of-two" for row in rows)


def test_what_makes_no_sense_is_said_before_anything_runs(cluster, tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    for source, settings in (
        ([{"text": "a"}], {}),
        ([{"prompt": "a", "tokens": [1]}], {}),
        ([{"prompt": "\ud800"}], {}),
        ([{"prompt": 7}], {}),
        (["a"], {}),
        ([{"prompt": "a"}], {"colour": 1}),
        ([{"prompt": "a"}], {"num_cpus": 0}),
        ([{"prompt": "a"}], {"actors": (3, 2)}),
        ([{"prompt": "a", "targets": object()}], {}),
    ):
        with pytest.raises((cs.InputError, TypeError)):
            trace_dataset(source, folder, **settings)
    assert not folder.exists()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n[1]\n', encoding="utf-8")
    with pytest.raises(cs.InputError, match="line 2: expected an object"):
        list(read_jsonl(bad))
    plan = {name: None for name in ("model", "transcoders", "node_threshold", "edge_threshold", "raw", "settings")}
    assert key_of({"prompt": "a", "slug": "x"}, plan) == key_of({"slug": "y", "prompt": "a"}, plan)
    assert len(key_of({"prompt": "a"}, plan)) == 16
