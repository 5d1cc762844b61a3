"""Graphs to and from circuit-tracer (github.com/decoderesearch/circuit-tracer)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native, _values
from ._errors import InputError

if TYPE_CHECKING:
    from ._graph import Graph


def to_circuit_tracer(graph: Graph, library: str) -> dict[str, Any]:
    """As :meth:`Graph.to_circuit_tracer`."""
    if library not in ("torch", "numpy"):
        raise InputError(f"library is torch or numpy, not {library!r}")
    if not graph._native.is_full():
        raise InputError("circuit-tracer has no graphs with closed positions or without some of the errors")
    n_features, n_nodes, n_targets = graph.n_features, len(graph), graph.n_targets
    adjacency = np.zeros((n_nodes, n_nodes), np.float32)
    adjacency[:n_features] = graph.adjacency[:n_features]
    adjacency[n_nodes - n_targets :] = graph.adjacency[n_features:]
    vocab_size = len(graph.logits)
    # What is no token has a number past the vocabulary, as circuit-tracer gives it.
    ids = [int(token) if token >= 0 else vocab_size + at for at, token in enumerate(graph.target_ids)]
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "input_tokens": graph.input_tokens,
        "active_features": graph.active_features.astype(np.int64),
        "adjacency_matrix": adjacency,
        "selected_features": graph.selected_features.astype(np.int64),
        "activation_values": graph.activation_values,
        "logit_probabilities": graph.target_probabilities,
    }
    found: dict[str, Any] = {"input_string": graph.prompt, **{name: value.copy() for name, value in arrays.items()}}
    if library == "torch":
        try:
            import torch
        except ImportError:
            raise ImportError("tensors need PyTorch; library='numpy' gives arrays") from None
        found.update({name: torch.from_numpy(found[name]) for name in arrays})
    found["logit_targets"] = [_logit_target(text, token) for text, token in zip(graph.targets, ids)]
    found["vocab_size"] = vocab_size
    found["scan"] = graph.meta["scan"]
    return found


def _logit_target(text: str, token: int) -> tuple[str, int]:
    """circuit-tracer's own pair, where it is installed."""
    try:
        from circuit_tracer.attribution.targets import LogitTarget
    except ImportError:
        return (text, token)
    made: tuple[str, int] = LogitTarget(text, token)
    return made


def from_circuit_tracer(source: Any, n_layers: int | None) -> _native.Graph:
    """As :meth:`Graph.from_circuit_tracer`."""
    if isinstance(source, (str, os.PathLike)):
        name = _values.path(source)
        try:
            from circuit_tracer import Graph as Theirs
        except ImportError:
            raise ImportError(
                "a .pt file is a pickle, which only circuit-tracer itself opens: install it (pip install circuit-tracer), "
                "or save its graph as JSON and open that with Circuit.read"
            ) from None
        source = Theirs.from_pt(name)
    try:
        parts = {
            name: _array(getattr(source, name))
            for name in (
                "input_tokens",
                "active_features",
                "adjacency_matrix",
                "selected_features",
                "activation_values",
                "logit_probabilities",
            )
        }
        targets = list(source.logit_targets)
        prompt = _values.text(source.input_string, "the prompt")
        vocab_size = _values.whole(source.vocab_size, "vocab_size")
    except AttributeError as error:
        raise TypeError(f"this is no graph of circuit-tracer: {error}") from None
    tokens = parts["input_tokens"].reshape(-1)
    active = parts["active_features"]
    if active.ndim != 2 or active.shape[1] != 3:
        raise InputError(f"active_features has the shape {list(active.shape)}, expected [n_active, 3]")
    adjacency = parts["adjacency_matrix"]
    if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise InputError(f"adjacency_matrix has the shape {list(adjacency.shape)}, expected a square")
    selected, activations = parts["selected_features"].reshape(-1), parts["activation_values"].reshape(-1)
    n_active, n_selected, n_pos, n_targets = len(active), len(selected), len(tokens), len(targets)
    if len(activations) != n_active:
        raise InputError(f"activation_values has {len(activations)} entries, active_features {n_active}")
    if n_selected and not (0 <= selected.min() and selected.max() < n_active):
        raise InputError(f"selected_features names features that are not among the {n_active} active ones")
    if n_layers is None:
        n_layers = getattr(getattr(source, "cfg", None), "n_layers", None)
    if n_layers is None and n_pos:
        n_layers = (len(adjacency) - n_selected - n_targets) // n_pos - 1
    n_layers = _values.whole(n_layers, "n_layers", 1, 2**16)
    n_nodes = n_selected + (n_layers + 1) * n_pos + n_targets
    if len(adjacency) != n_nodes:
        raise InputError(
            f"adjacency_matrix has {len(adjacency)} nodes; {n_selected} features, {n_layers} layers, {n_pos} positions and "
            f"{n_targets} targets make {n_nodes}"
        )
    # Here features are in the order of their numbers.
    order = np.lexsort((active[:, 2], active[:, 1], active[:, 0]))
    place = np.empty(n_active, np.int64)
    place[order] = np.arange(n_active)
    in_order = np.argsort(place[selected], kind="stable")
    columns = np.concatenate([in_order, np.arange(n_selected, n_nodes)])
    rows = np.concatenate([in_order, np.arange(n_nodes - n_targets, n_nodes)])
    edge_rows = np.ascontiguousarray(adjacency[np.ix_(rows, columns)], np.float32)
    texts, ids = zip(*(_pair(target) for target in targets)) if targets else ((), ())
    whole_tokens = [_values.whole(token, "a token", 0, _values.MAX_TOKEN) for token in tokens.tolist()]
    scan = getattr(source, "scan", None)
    scan = scan if isinstance(scan, str) else "" if scan is None else ", ".join(map(str, scan))
    model = getattr(getattr(source, "cfg", None), "model_name", None) or ""
    return _native.Graph.from_parts(
        prompt,
        _token_texts(source, whole_tokens),
        whole_tokens,
        [tuple(_values.whole(part, "an active feature", 0, 2**32 - 1) for part in row) for row in active[order].tolist()],
        [_values.single(value, "an activation") for value in activations[order].tolist()],
        [int(at) for at in place[selected][in_order]],
        edge_rows.tobytes(),
        [token if token < vocab_size else -1 for token in ids],
        list(texts),
        [_values.single(value, "a probability") for value in parts["logit_probabilities"].reshape(-1).tolist()],
        n_layers,
        (str(model), scan),
    )


def _array(tensor: Any) -> Any:
    """A tensor or an array as NumPy has it; of a sparse one or one on a GPU, a copy."""
    for step in ("detach", "to_dense", "cpu"):
        if hasattr(tensor, step):
            tensor = getattr(tensor, step)()
    if type(tensor).__name__ == "Tensor" and "bfloat16" in str(getattr(tensor, "dtype", "")):
        tensor = tensor.float()
    array = np.asarray(tensor)
    if array.dtype.kind not in "fiu":
        raise InputError(f"expected numbers, found {array.dtype}")
    return array


def _pair(target: Any) -> tuple[str, int]:
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise InputError(f"a target is a text and an id, not {target!r}")
    return _values.text(str(target[0]), "a target's text"), _values.whole(target[1], "a target's id")


def _token_texts(source: Any, tokens: list[int]) -> list[str]:
    """Texts of the tokens; their numbers, since circuit-tracer's graphs do not hold texts."""
    texts = getattr(source, "prompt_tokens", None)
    if isinstance(texts, list) and len(texts) == len(tokens):
        return [_values.text(text, "a token's text") for text in texts]
    return [f"#{token}" for token in tokens]
