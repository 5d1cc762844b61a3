"""Bad input is an exception with a message that names it."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from conftest import DALLAS

import circuitscope as cs


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a \ud800 b",
        [],
        [1, -1],
        [1, 2**32],
        [10**30],
        [1, 10**9],
        np.zeros((2, 3), int),
        ["the"],
        [1.5],
        [None],
        None,
        7,
        b"bytes",
        {"a": 1},
        np.array([1.0, 2.0]),
        np.array(["a"]),
        np.array([1], object),
        "word " * 5000,
        object(),
    ],
    ids=repr,
)
def test_prompts(tracer: cs.Tracer, prompt) -> None:
    for call in (tracer.trace, tracer.tokenize, tracer.features, lambda p: tracer.intervene(p, {"0_39_7": 0.0})):
        with pytest.raises((cs.InputError, TypeError)) as raised:
            call(prompt)
        assert str(raised.value) and not isinstance(raised.value, RuntimeError)


def test_what_is_wrong_is_named(tracer: cs.Tracer) -> None:
    with pytest.raises(cs.InputError, match=r"surrogate at character 2.*'\\ud800'"):
        tracer.trace("a \ud800 b")
    with pytest.raises(cs.InputError, match="token 1 of the prompt is -1"):
        tracer.trace([1, -1])
    with pytest.raises(ValueError, match="hint: these are single tokens"):
        tracer.token("Aus tin")
    error = None
    try:
        tracer.token("Sacramentoo Austin")
    except cs.Error as found:
        error = found
    assert error is not None and error.kind == "not found"
    with pytest.raises(cs.FileError, match="missing") as missing:
        cs.Graph.read("/missing/graph.safetensors")
    assert isinstance(missing.value, OSError)
    with pytest.raises(cs.Error, match="expected auto, cpu, cuda"):
        cs.Tracer(device="tpu")
    with pytest.raises(cs.Error):
        cs.Tracer("no-such-model")
    with pytest.raises(cs.InputError, match="atlas brings its own"):
        cs.Tracer(transcoders="elsewhere")


BAD_TARGETS = [
    "no token at all",
    "\udcff",
    -1,
    2**40,
    10**9,
    (" Austin",),
    (" Austin", 5, 6),
    np.zeros(128, np.float32),
    np.ones(127),
    np.ones((128, 1)),
    np.ones((1, 128)),
    np.full(128, np.nan),
    np.full(128, np.inf),
    np.full(128, 1e300),
    np.ones(128, complex),
    np.ones(128, bool),
    np.array(["x"] * 128),
    np.array([None] * 128),
    np.ones(0),
    None.__class__,
    {"a"},
    [[" Austin"]],
    1.5,
    True,
]


@pytest.mark.parametrize("target", BAD_TARGETS, ids=[f"{i}" for i in range(len(BAD_TARGETS))])
def test_targets(tracer: cs.Tracer, target) -> None:
    with pytest.raises((cs.InputError, TypeError)):
        tracer.trace(DALLAS, target)


def test_other_targets(tracer: cs.Tracer) -> None:
    for make in (
        lambda: cs.FeatureTarget("0_39"),
        lambda: cs.FeatureTarget("0_39_99"),
        lambda: cs.FeatureTarget("0_39_*"),
        lambda: cs.FeatureTarget(7),
        lambda: cs.FeatureTarget(f"0_{10**25}_7"),
        lambda: cs.AttentionTarget("1.0@8"),
        lambda: cs.AttentionTarget("99.0@8:7"),
        lambda: cs.AttentionTarget("1.0@8:7", -1),
        lambda: cs.AttentionTarget("1.0@8:7", "all"),
        lambda: cs.AttentionTarget("1.0@8:7", 10**30),
        lambda: cs.Direction(np.ones(128), "\ud800"),
        lambda: cs.Direction("direction"),
    ):
        with pytest.raises((cs.InputError, TypeError)):
            tracer.trace(DALLAS, make())


@pytest.mark.parametrize(
    "settings",
    [
        {"position": -1},
        {"position": 99},
        {"position": 2**70},
        {"max_logits": 0},
        {"max_logits": 1.5},
        {"logit_prob": 1.5},
        {"logit_prob": float("nan")},
        {"logit_prob": "0.5"},
        {"rows": "some"},
        {"rows": -3},
        {"rows": 5, "theta": 0.1},
        {"theta": -1.0},
        {"max_features": 5, "nodes": 3},
        {"open_positions": "7..3"},
        {"open_positions": "3..99"},
        {"open_positions": ""},
        {"open_positions": [3, 7]},
        {"batch_size": 0},
        {"batch_size": 10**40},
        {"progress": "yes"},
        {"nodes": True},
    ],
    ids=repr,
)
def test_settings(tracer: cs.Tracer, settings) -> None:
    with pytest.raises((cs.InputError, TypeError)):
        tracer.trace(DALLAS, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {},
        {"": 0},
        {"0_39": 0},
        {"0_39_99": 0},
        {"9_39_7": 0},
        {"0_9999_7": 0},
        {f"0_39_{10**30}": 0},
        {"0_39_7": "0"},
        {"0_39_7": float("nan")},
        {"0_39_7": float("inf")},
        {"0_39_7": 1e300},
        {"0_39_7": 10**400},
        {"0_39_7": None},
        {"0_39_7": np.zeros(2)},
        {"\udc00": 0},
        {7: 0},
        {(0, 39): 0},
        {(0, 39, -7): 0},
        ["0_39_7"],
        "0_39_7",
        {"0_40_7": cs.Scale(2)},
    ],
    ids=repr,
)
def test_changes(tracer: cs.Tracer, changes) -> None:
    with pytest.raises((cs.InputError, TypeError)):
        tracer.intervene(DALLAS, changes)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "loose"},
        {"mode": None},
        {"constrain": (2, 2)},
        {"constrain": (0, 99)},
        {"constrain": 3},
        {"constrain": (0, 2), "mode": "direct"},
        {"generate": -1},
        {"generate": 2, "temperature": -1.0},
        {"generate": 2, "temperature": 1.0, "top_p": 0.0},
        {"generate": 2, "top_p": 0.5},
        {"temperature": 1.0},
        {"generate": 2, "keep_frozen": True},
        {"generate": 2, "seed": -1},
        {"generate": 2, "seed": 2**64},
        {"target": "no token"},
        {"target": 10**9},
        {"heads": {"99.0": "zero"}},
        {"heads": {"1.0": "half"}},
        {"heads": {"1.0": ("like", "short")}},
        {"heads": ["1.0"]},
        {"groups": {"a": "0_39_7"}},
        {"groups": {"a": ["0_39_*"]}},
        {"groups": {"a": ["0_39_99"]}},
        {"groups": {"a": [f"{2**33}_39_7"]}},
        {"groups": {"\ud800": []}},
        {"groups": 7},
        {"top": -1},
    ],
    ids=repr,
)
def test_settings_of_interventions(tracer: cs.Tracer, settings) -> None:
    with pytest.raises((cs.InputError, TypeError)):
        tracer.intervene(DALLAS, {"0_39_7": 0.0}, **settings)


def test_reading_and_sweeping(tracer: cs.Tracer) -> None:
    for settings in (
        {"pre_activations": [99]},
        {"pre_activations": [-1]},
        {"pre_activations": 5},
        {"hooks": ["blocks.99.hook_resid_pre"]},
        {"hooks": ["no.such.hook"]},
        {"hooks": "hook_pos_embed"},
        {"hooks": [7]},
    ):
        with pytest.raises((cs.InputError, TypeError)):
            tracer.features(DALLAS, **settings)
    for values in ([], [np.nan], "abc", [[1, 2]], [1e300], None, [10**400]):
        with pytest.raises((cs.InputError, TypeError)):
            tracer.sweep(DALLAS, "0_39_7", values)
    with pytest.raises((cs.InputError, TypeError)):
        tracer.compare(DALLAS, {})
    features = tracer.features(DALLAS)
    for name in ("0_39", "9_0_0", "0_99999_0", "0_0_99", "a_b_c", 7):
        with pytest.raises((cs.InputError, TypeError)):
            features[name]
    with pytest.raises(cs.InputError):
        features.dense(99)


def test_circuits(graph: cs.Graph, tmp_path) -> None:
    circuit = graph.prune()
    for call in (
        lambda: graph.prune(node_threshold=1.5),
        lambda: graph.prune(edge_threshold=-0.1),
        lambda: graph.prune(node_threshold=float("nan")),
        lambda: graph.prune("0.8"),
        lambda: graph.prune(max_nodes=0),
        lambda: circuit.paths(10**7),
        lambda: circuit.paths(-1),
        lambda: circuit.paths(3, sources="9_9_9"),
        lambda: circuit.paths(3, targets=[5]),
        lambda: circuit.text(node="9_9_9"),
        lambda: circuit.text(top=2**64),
        lambda: circuit.svg({"a": ["9_9_9"]}),
        lambda: circuit.svg({"a": []}),
        lambda: circuit.svg({"a": ["0_39_7"], "b": ["0_39_7"]}),
        lambda: circuit.svg(auto_group=3.0),
        lambda: circuit.svg(edge_share=2.0),
        lambda: circuit.svg(max_nodes=-1),
        lambda: circuit.png(scale=0),
        lambda: circuit.png(scale=10**6),
        lambda: circuit.save(tmp_path / "x.txt"),
        lambda: circuit.save("a\0b.json"),
        lambda: circuit.save("\ud800.json"),
        lambda: circuit.save(7),
        lambda: circuit.save(b"x.json"),
        lambda: circuit.save(tmp_path / "missing" / "x.json") if False else graph.save(tmp_path),
        lambda: cs.Circuit.read(tmp_path / "missing.json"),
        lambda: cs.Circuit.read(__file__),
        lambda: cs.Graph.read(__file__),
    ):
        with pytest.raises((cs.Error, TypeError)):
            call()
    assert not list(tmp_path.iterdir())


def test_a_closed_tracer_says_so() -> None:
    with cs.Tracer() as tracer:
        graph = tracer.trace(DALLAS)
        run = tracer.intervene(DALLAS, {"0_39_7": 0.0})
    assert tracer.closed and "closed" in repr(tracer)
    tracer.close()
    for call in (
        lambda: tracer.trace(DALLAS),
        lambda: tracer.tokenize(DALLAS),
        lambda: tracer.token(" Austin"),
        lambda: tracer.features(DALLAS),
        lambda: tracer.intervene(DALLAS, {"0_39_7": 0.0}),
        lambda: tracer.sweep(DALLAS, "0_39_7", [0.0]),
        lambda: tracer.verify(graph),
        lambda: tracer.direction('" Austin"'),
    ):
        with pytest.raises(cs.InputError, match="the tracer is closed"):
            call()
    # What was made goes on.
    assert len(graph.prune()) == 24 and run.before.top(1)[0].token == " Austin"


def test_closing_waits_for_nobody_and_breaks_nothing() -> None:
    tracer = cs.Tracer()
    done: list[object] = []

    def work() -> None:
        try:
            done.append(tracer.sweep(DALLAS, "0_39_7", np.linspace(-5, 5, 500)))
        except cs.Error as error:
            done.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    tracer.close()
    for thread in threads:
        thread.join()
    assert len(done) == 3
    assert all(isinstance(found, cs.Sweep) or "closed" in str(found) for found in done)


def test_what_cannot_be_copied_says_so(tracer: cs.Tracer, graph: cs.Graph) -> None:
    for value in (tracer, graph, graph.prune()):
        with pytest.raises(TypeError):
            pickle.dumps(value)
