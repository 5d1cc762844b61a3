"""Whatever crosses the border, it is an answer or one of the promised exceptions, and the interpreter goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import DALLAS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import circuitscope as cs

#: Any text, lone surrogates included.
TEXTS = st.text(st.characters(codec=None), max_size=12)
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.integers(-3, 40))
ARRAYS = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.complex_number_dtypes(),
        hnp.boolean_dtypes(), hnp.unicode_string_dtypes(max_len=3), hnp.byte_string_dtypes(max_len=3),
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
)
#: Of the right length, and whatever lies about in memory.
DIRECTIONS = hnp.arrays(np.float64, 256, elements=st.floats(width=64)).map(lambda array: array[::2])
SCALARS = st.one_of(st.none(), NUMBERS, TEXTS, st.binary(max_size=5), st.just(object()), st.just(len))
NODES = st.one_of(
    st.sampled_from(["0_39_7", "0_303_7", "0_39_*", "1_2_3", "0_39_4..7", "E_1_2", "Texas", "3_955_8"]),
    st.tuples(st.integers(-1, 5), st.integers(-1, 2**40), st.integers(-1, 12)),
    TEXTS,
)
#: Anything at all.
ANYTHING = st.recursive(
    st.one_of(SCALARS, ARRAYS, NODES, DIRECTIONS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.one_of(NODES, TEXTS), inner, max_size=3)
    ),
    max_leaves=6,
)
PROMPTS = st.one_of(st.just(DALLAS), st.lists(st.integers(-1, 5000), max_size=6), TEXTS, ANYTHING)

#: What the border may answer.
PROMISED = (cs.Error, TypeError)

ROUNDS = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def answered(call: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return call(*arguments, **named)
    except PROMISED as error:
        assert str(error)
        return None


#: Calls that work, and what may be strange in them, one argument at a time.
CALLS: dict[str, dict[str, Any]] = {
    "trace": {
        "prompt": DALLAS, "targets": None, "position": None, "max_logits": 10, "logit_prob": 0.95, "rows": None,
        "theta": None, "nodes": None, "max_features": None, "open_positions": None, "batch_size": 512, "decoders": True, "progress": False,
    },
    "intervene": {
        "prompt": DALLAS, "changes": {"0_39_7": 0.0}, "heads": None, "mode": "free", "constrain": None, "generate": 1,
        "keep_frozen": False, "temperature": None, "top_p": None, "seed": 0, "target": None, "groups": None, "top": 3,
    },
    "sweep": {"prompt": DALLAS, "feature": "0_39_7", "values": [0.0, 1.0], "changes": None, "heads": None, "target": None},
    "compare": {"prompt": DALLAS, "alternatives": {"a": {"0_39_7": 0.0}}, "changes": None, "heads": None, "mode": "free"},
    "features": {"prompt": DALLAS, "pre_activations": [0], "hooks": ["hook_embed"]},
}
STRANGE = [(name, argument) for name, arguments in CALLS.items() for argument in arguments]


@settings(ROUNDS, max_examples=40)
@pytest.mark.parametrize("name, argument", STRANGE, ids=[f"{name}-{argument}" for name, argument in STRANGE])
@given(value=st.one_of(ANYTHING, NUMBERS, NODES, st.dictionaries(NODES, NUMBERS, max_size=2), DIRECTIONS))
def test_one_strange_argument(tracer: cs.Tracer, name: str, argument: str, value: Any) -> None:
    # As many tokens as the context holds are fine, and take their time.
    if argument == "generate" and isinstance(value, (int, np.integer)) and value > 5:
        value = 5
    found = answered(getattr(tracer, name), **{**CALLS[name], argument: value})
    assert found is None or repr(found)


@ROUNDS
@given(prompt=PROMPTS, targets=ANYTHING, settings=st.dictionaries(
    st.sampled_from(["position", "max_logits", "logit_prob", "rows", "theta", "nodes", "max_features", "open_positions", "batch_size"]),
    SCALARS, max_size=3,
))
def test_trace(tracer: cs.Tracer, prompt: Any, targets: Any, settings: dict[str, Any]) -> None:
    graph = answered(tracer.trace, prompt, targets, **settings)
    if graph is not None:
        assert np.isfinite(graph.adjacency).all() and len(graph.nodes) == graph.adjacency.shape[1]
        assert repr(graph)


@ROUNDS
@given(prompt=PROMPTS, changes=st.one_of(ANYTHING, st.dictionaries(NODES, NUMBERS, min_size=1, max_size=3)),
       settings=st.dictionaries(
    st.sampled_from(["mode", "constrain", "keep_frozen", "temperature", "top_p", "seed", "target", "groups", "top", "heads"]),
    ANYTHING, max_size=3,
), generate=st.one_of(st.none(), st.integers(-1, 3), SCALARS.filter(lambda n: not isinstance(n, int) or n < 4)))
def test_intervene(tracer: cs.Tracer, prompt: Any, changes: Any, settings: dict[str, Any], generate: Any) -> None:
    run = answered(tracer.intervene, prompt, changes, generate=generate, **settings)
    if run is not None:
        assert np.isfinite(run.logits).all() and run.kl >= 0 and run.before.top(3) and str(run) and run.report


@ROUNDS
@given(prompt=PROMPTS, layers=st.one_of(st.lists(st.integers(-1, 5), max_size=3), ANYTHING),
       hooks=st.one_of(st.lists(st.sampled_from(["blocks.0.hook_mlp_out", "hook_pos_embed", "hook_embed"])), ANYTHING))
def test_features(tracer: cs.Tracer, prompt: Any, layers: Any, hooks: Any) -> None:
    found = answered(tracer.features, prompt, pre_activations=layers, hooks=hooks)
    if found is not None:
        assert len(found.active) == len(found) and repr(found)


@ROUNDS
@given(feature=st.one_of(NODES, ANYTHING), values=st.one_of(hnp.arrays(float, st.integers(0, 5)), ANYTHING),
       changes=ANYTHING, alternatives=ANYTHING)
def test_sweep_and_compare(tracer: cs.Tracer, feature: Any, values: Any, changes: Any, alternatives: Any) -> None:
    for sweep in (
        answered(tracer.sweep, DALLAS, feature, values, changes=changes),
        answered(tracer.compare, DALLAS, alternatives, changes=changes),
    ):
        if sweep is not None:
            assert np.isfinite(sweep.probabilities).all() and sweep.svg().startswith("<svg") and repr(sweep)


@ROUNDS
@given(node=st.one_of(NODES, ANYTHING), number=SCALARS, groups=ANYTHING)
def test_circuits(graph: cs.Graph, node: Any, number: Any, groups: Any) -> None:
    circuit = graph.circuit
    answered(circuit.text, node=node, top=number)
    answered(circuit.paths, number, node, groups)
    answered(circuit.svg, groups, max_nodes=number)
    answered(circuit.to_dot, groups)
    answered(graph.index, node)
    answered(graph.prune, number, number)
    answered(circuit.strongest, number)
    assert node not in circuit or isinstance(node, str)


@ROUNDS
@given(anything=ANYTHING)
def test_the_rest(tracer: cs.Tracer, graph: cs.Graph, anything: Any) -> None:
    for call in (
        tracer.tokenize, tracer.token, tracer.token_texts, tracer.labels, tracer.direction, cs.Direction, cs.Scale,
        cs.FeatureTarget, cs.AttentionTarget, cs.Graph.read, cs.Circuit.read, tracer.verify,
        graph.circuit.__contains__,
    ):
        answered(call, anything)
    if not (isinstance(anything, str) and anything):
        answered(graph.circuit.save, anything)
        answered(graph.save, anything)


@settings(ROUNDS, max_examples=300)
@given(arguments=st.lists(ANYTHING, max_size=13), which=st.sampled_from([
    "trace", "intervene", "sweep", "read", "tokenize", "token", "texts", "labels", "directions", "verify", "decode",
]))
def test_the_native_side_alone(tracer: cs.Tracer, arguments: list[Any], which: str) -> None:
    try:
        getattr(tracer._native, which)(*arguments)
    except Exception as error:
        # A panic is no `Exception`, and would end the test.
        assert "has failed where it should not" not in str(error)


@pytest.mark.parametrize("shape", [(0,), (1,), (127,), (129,), (128, 1), (1, 128), ()])
def test_shapes_of_directions(tracer: cs.Tracer, shape: tuple[int, ...]) -> None:
    assert answered(lambda: tracer.trace(DALLAS, np.ones(shape))) is None
