"""A traced graph."""

from __future__ import annotations

import html
import json
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native, _values
from ._circuit import Circuit
from ._errors import InputError
from ._values import PathLike


class Graph:
    """Every direct effect of one prompt, before pruning.

    :meth:`Tracer.trace` makes it and :meth:`Graph.read` reads a raw file. In a notebook it shows its circuit, in a
    terminal the summary of it.

    All arrays are views of the graph's own memory: nothing is copied, and nothing may be written. They keep the graph
    alive.

    Nodes are in this order: selected features by layer, position and feature; errors by layer and position; tokens by
    position; targets. Rows of the adjacency are the selected features, then the targets; its columns are all nodes.
    """

    def __init__(self, native: _native.Graph) -> None:
        self._native = native

    @classmethod
    def read(cls, path: PathLike) -> Graph:
        """Reads a raw graph (``.safetensors``). Large ones stay in the file and are read as they are needed.

        Raises:
            FileError: The file cannot be read.
            InputError: It is no raw graph, or damaged.
        """
        return cls(_native.Graph.read(_values.path(path)))

    @classmethod
    def from_circuit_tracer(cls, source: Any, n_layers: int | None = None) -> Graph:
        """A graph of circuit-tracer: its ``Graph``, or the name of its ``.pt`` file.

        A ``.pt`` file is a pickle, which can run any program when it is opened. Only circuit-tracer itself opens it, so
        it has to be installed; open files that you trust.

        Such graphs do not tell bias effects: here each row adds up to itself.

        Args:
            source: A ``circuit_tracer.Graph``, anything with its attributes, or a path.
            n_layers: Layers of the model, where the graph has no ``cfg`` that tells.

        Raises:
            ImportError: A path, and circuit-tracer is not installed.
            InputError: Tensors that do not fit each other.
        """
        from ._interop import from_circuit_tracer

        return cls(from_circuit_tracer(source, n_layers))

    def to_circuit_tracer(self, library: str = "torch") -> dict[str, Any]:
        """The arguments of circuit-tracer's ``Graph``, but for ``cfg``, which only a loaded model has:
        ``circuit_tracer.Graph(cfg=model.cfg, **graph.to_circuit_tracer())``.

        Args:
            library: ``"torch"`` for tensors, ``"numpy"`` for arrays.

        Returns:
            ``input_string``; ``input_tokens`` ``[n_pos]``, ``active_features`` ``[n_active, 3]`` (layer, position,
            feature), ``selected_features`` ``[n_selected]``, all int64; ``adjacency_matrix`` ``[n_nodes, n_nodes]``,
            ``activation_values`` ``[n_active]``, ``logit_probabilities`` ``[n_targets]``, all float32;
            ``logit_targets``, a list of (text, id); ``vocab_size``; ``scan``. A target that is no token has an id of
            ``vocab_size`` or more.

        Raises:
            ImportError: PyTorch is asked for and not installed.
        """
        from ._interop import to_circuit_tracer

        return to_circuit_tracer(self, library)

    def save(self, path: PathLike) -> None:
        """Writes the raw graph, the same bytes that ``circuitscope trace`` writes; all of it or nothing.

        Raises:
            FileError: The file cannot be written.
        """
        self._native.save(_values.path(path))

    def prune(
        self, node_threshold: float = 0.8, edge_threshold: float = 0.98, max_nodes: int | None = 5000
    ) -> Circuit:
        """The nodes and edges that carry most of the influence.

        Args:
            node_threshold: Share of all influence that the kept nodes add up to, in 0..=1.
            edge_threshold: Share of the scores of all edges between them that the kept ones add up to, in 0..=1.
            max_nodes: At most so many nodes are kept, those of most influence; ``None``: all within the threshold.

        Raises:
            InputError: A threshold outside 0..=1; no nodes.
        """
        node_threshold = _values.number(node_threshold, "node_threshold")
        edge_threshold = _values.number(edge_threshold, "edge_threshold")
        most = _values.optional_whole(max_nodes, "max_nodes", 1)
        return Circuit(self._native.prune(node_threshold, edge_threshold, most))

    @cached_property
    def circuit(self) -> Circuit:
        """:meth:`prune` with the usual thresholds, kept."""
        return self.prune()

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Where the graph comes from: the metadata of the raw file (``docs/formats.md``)."""
        found: dict[str, Any] = json.loads(self._native.meta())
        return found

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return str(self.meta["prompt"])

    @property
    def prompt_tokens(self) -> list[str]:
        """The text of every token. ``[n_pos]``"""
        return list(self.meta["prompt_tokens"])

    @property
    def targets(self) -> list[str]:
        """What is explained: a token's text, or a name. ``[n_targets]``"""
        return list(self.meta["target_labels"])

    @property
    def replacement_score(self) -> float:
        """The part of all influence that starts at tokens and not at errors, in 0..=1."""
        return float(self.meta["replacement_score"])

    @property
    def completeness_score(self) -> float:
        """The part of the nodes' inputs that does not come from errors, weighted by influence, in 0..=1."""
        return float(self.meta["completeness_score"])

    @property
    def n_features(self) -> int:
        """Selected features: those that are nodes."""
        return self._native.sizes()[0]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self._native.sizes()[1]

    @property
    def n_pos(self) -> int:
        """Positions of the prompt."""
        return self._native.sizes()[2]

    @property
    def n_targets(self) -> int:
        """Targets."""
        return self._native.sizes()[3]

    @cached_property
    def adjacency(self) -> npt.NDArray[np.float32]:
        """Direct effects: row ``i`` is what every node gives to selected feature ``i``, or to target ``i - n_features``.
        In logits for a target, in units of its pre-activation for a feature. ``[n_features + n_targets, n_nodes]``"""
        return self._view("adjacency")

    @cached_property
    def active_features(self) -> npt.NDArray[np.uint32]:
        """Every active feature, ascending: layer, position, feature. ``[n_active, 3]``"""
        return self._view("active_features")

    @cached_property
    def activation_values(self) -> npt.NDArray[np.float32]:
        """Activations of the active features. ``[n_active]``"""
        return self._view("activation_values")

    @cached_property
    def selected_features(self) -> npt.NDArray[np.uint64]:
        """Which active features are nodes, ascending. ``[n_features]``"""
        return self._view("selected_features")

    @cached_property
    def bias_effect(self) -> npt.NDArray[np.float32]:
        """The part of each row's value that comes from biases. ``[n_features + n_targets]``"""
        return self._view("bias_effect")

    @cached_property
    def unselected_effect(self) -> npt.NDArray[np.float32]:
        """The part that comes from active features that are no nodes; empty where all are.
        ``[n_features + n_targets]`` or ``[0]``"""
        return self._view("unselected_effect")

    @cached_property
    def unselected_error_effect(self) -> npt.NDArray[np.float32]:
        """What errors that are no nodes give to each row; empty where all are nodes. ``[n_rows]`` or ``[0]``"""
        return self._view("unselected_error_effect")

    @cached_property
    def row_values(self) -> npt.NDArray[np.float32]:
        """What a row, its bias effect and its unselected effect add up to: the pre-activation of the feature, or the
        target's value. ``[n_features + n_targets]``"""
        return self._view("row_values")

    @cached_property
    def influence(self) -> npt.NDArray[np.float64]:
        """The part of the targets' weight that passes through each node; 0 for targets. ``[n_nodes]``"""
        return self._view("influence")

    @cached_property
    def input_tokens(self) -> npt.NDArray[np.int64]:
        """Token ids, BOS included. ``[n_pos]``"""
        return self._view("input_tokens")

    @cached_property
    def target_ids(self) -> npt.NDArray[np.int64]:
        """Vocabulary ids of the targets, -1 for what is no token. ``[n_targets]``"""
        return self._view("target_ids")

    @cached_property
    def target_probabilities(self) -> npt.NDArray[np.float32]:
        """Weights of the targets: probabilities of tokens. ``[n_targets]``"""
        return self._view("target_probabilities")

    @cached_property
    def logits(self) -> npt.NDArray[np.float32]:
        """The model's logits at the last position. ``[d_vocab]``"""
        return self._view("logits")

    @cached_property
    def nodes(self) -> np.recarray[Any, Any]:
        """All nodes as records, in the order of the adjacency's columns: ``id`` as the command line and JSON write it,
        ``kind`` (``"feature"``, ``"error"``, ``"token"``, ``"context"``: what attention reads at a closed position,
        ``"target"``), ``layer``, ``pos`` and ``feature`` (-1 where there is none), ``activation`` and ``probability`` (NaN where there is none), ``influence``, ``text`` (of the
        token at ``pos``; of a target, its own) and ``label``. ``[n_nodes]``"""
        n_targets = self.n_targets
        ids = self._native.node_ids()
        kinds, layer, pos = zip(*self._native.places())
        tokens, targets = self.prompt_tokens, self.targets
        labels = self.meta.get("feature_labels", {})
        selected = self.selected_features.astype(np.intp)
        features = self.active_features[selected].astype(np.int64)
        n_others = len(ids) - len(features)
        feature = np.concatenate([features[:, 2], np.full(n_others, -1)])
        activation = np.concatenate([self.activation_values[selected], np.full(n_others, np.nan)])
        probability = np.concatenate([np.full(len(ids) - n_targets, np.nan), self.target_probabilities])
        texts = [tokens[at] for at in pos[: len(ids) - n_targets]] + targets
        names = [labels.get(f"{row[0]}_{row[2]}", "") for row in features] + [""] * n_others
        columns: list[tuple[str, Any, Any]] = [
            ("id", _width(ids), ids),
            ("kind", "U7", kinds),
            ("layer", "i4", layer),
            ("pos", "i4", pos),
            ("feature", "i8", feature),
            ("activation", "f4", activation),
            ("probability", "f4", probability),
            ("influence", "f8", self.influence),
            ("text", _width(texts), texts),
            ("label", _width(names), names),
        ]
        records = np.empty(len(ids), dtype=[(name, kind) for name, kind, _ in columns])
        for name, _, values in columns:
            records[name] = values
        records.flags.writeable = False
        return records.view(np.recarray)

    def index(self, node: str) -> int:
        """The column of a node, by its id.

        Raises:
            InputError: The graph has no such node.
        """
        found = self._places.get(_values.feature(node, "the node"))
        if found is None:
            raise InputError(f"the graph has no node {node!r}")
        return found

    @cached_property
    def _places(self) -> dict[str, int]:
        return {str(name): at for at, name in enumerate(self.nodes["id"])}

    def _view(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(self._native.array(name))

    def __len__(self) -> int:
        """How many nodes there are."""
        return self._native.sizes()[4]

    def __repr__(self) -> str:
        return (
            f"Graph: {self.n_features} features of {len(self.active_features)} active, {len(self)} nodes; its circuit:\n"
            + str(self.circuit)
        )

    def _repr_svg_(self) -> str:
        return self.circuit.svg()

    def _repr_html_(self) -> str:
        head = f"{self.n_features} features of {len(self.active_features)} active, {len(self)} nodes. Pruned:"
        return f"<p>{html.escape(head)}</p>{self.circuit._repr_html_()}"


def _width(texts: list[str]) -> str:
    return f"U{max(map(len, texts), default=1) or 1}"
