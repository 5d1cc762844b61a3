"""What people write, for `mypy --strict`: every result has its type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import circuitscope as cs

if TYPE_CHECKING:
    from typing_extensions import assert_type


def sample(prompt: str) -> float:
    with cs.Tracer(device="cpu") as tracer:
        graph = tracer.trace(prompt, [" Austin", 5, (" Austin", " Sacramento"), cs.FeatureTarget("0_39_7")], max_logits=3)
        direction = cs.Direction(np.ones(tracer.d_model), "ones")
        tracer.trace([1, 2, 3], direction, rows="all", progress=lambda phase, done, total: None)
        circuit = graph.prune(node_threshold=0.8)
        run = tracer.intervene(prompt, {"0_39_7": 0.0, "1_2_3": cs.Scale(2)}, generate=8, mode="direct")
        sweep = tracer.sweep(prompt, "0_39_7", np.linspace(-1, 1, 3))
        features = tracer.features(prompt, hooks=["hook_embed"], pre_activations=True)
    if TYPE_CHECKING:
        assert_type(graph.adjacency, npt.NDArray[np.float32])
        assert_type(graph.active_features, npt.NDArray[np.uint32])
        assert_type(circuit.paths(k=3), list[cs.Path])
        assert_type(circuit.svg(), str)
        assert_type(run.before.top(5), list[cs.TokenProbability])
        assert_type(run.generated, str | None)
        assert_type(sweep.kl, npt.NDArray[np.float64])
        assert_type(features.hooks, dict[str, npt.NDArray[np.float32]])
    try:
        tracer.trace(7)  # type: ignore[arg-type]
    except (cs.InputError, TypeError):
        pass
    return run.kl + float(sweep.probabilities.max()) + circuit.paths(1)[0].strength
