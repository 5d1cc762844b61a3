"""The front door: a model with its transcoders, opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _native, _values
from ._errors import InputError
from ._graph import Graph
from ._progress import Progress, Reporter
from ._run import Features, Run, Sweep
from ._targets import Change, Direction, Scale, Target, Targets, plain_changes, plain_targets, plain_token
from ._values import PathLike, Prompt

#: What is held to the original run: nothing, attention patterns, these and the norms' denominators, or everything but
#: direct effects.
Mode = Literal["free", "frozen-attention", "frozen-norms", "direct"]

#: How heads are changed: by ``"LAYER.HEAD"`` or ``"LAYER.HEAD@POSITIONS"``, to nothing (``"zero"``), to their mean over
#: the prompt (``"mean"``), or to what they write in another prompt of as many tokens (``("like", prompt)``).
Heads = Mapping[str, Any]


class Tracer:
    """A base model with its transcoders, opened once for any number of calls.

    Calls may come from several threads. The interpreter goes on while they compute; an interrupt (ctrl-C, in a notebook
    the stop button) ends them with :class:`KeyboardInterrupt`. Use it as a context manager, or :meth:`close` it, to let
    go of the weights.

    Results are the same bytes as those of the command line, whatever the number of threads.

    Args:
        model: A folder in Hugging Face layout, a ``.gguf`` file, a Hub id ``org/name[@revision]``, or ``"atlas"``, the
            small model that is part of the package.
        transcoders: A folder with a ``config.yaml``, or a Hub id. Only ``atlas`` brings its own.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        labels: Names of features, a ``feature_labels.json`` other than the one beside the transcoders.

    Raises:
        InputError: Files that are missing, damaged or do not belong together.
        FileError: Files that cannot be read.
        Error: A device that cannot be used; the Hub cannot be reached.
    """

    def __init__(
        self,
        model: PathLike | None = None,
        transcoders: PathLike | None = None,
        device: str = "auto",
        labels: PathLike | None = None,
    ) -> None:
        name = "atlas" if model is None else _values.path(model, "the model")
        if name == "atlas" and transcoders is not None:
            raise InputError("atlas brings its own transcoders: name the model that these are of")
        self._native = _native.Tracer.open(
            name,
            None if transcoders is None else _values.path(transcoders, "the transcoders"),
            _values.text(device, "the device"),
            None if labels is None else _values.path(labels, "the labels"),
        )
        self._info: dict[str, Any] = self._native.info()

    def close(self) -> None:
        """Lets go of the model, after the calls that still run. Calls from now on raise :class:`InputError`."""
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._native.closed

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model(self) -> str:
        """The model, as it was named."""
        return str(self._info["model"])

    @property
    def transcoders(self) -> str:
        """The name of the transcoder set."""
        return str(self._info["transcoders"])

    @property
    def device(self) -> str:
        """What computes, in words."""
        return str(self._info["device"])

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self._info["n_layers"])

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._info["d_model"])

    @property
    def d_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return int(self._info["d_vocab"])

    @property
    def n_features(self) -> list[int]:
        """Features of every layer's transcoder. ``[n_layers]``"""
        return list(self._info["n_features"])

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"Tracer({self.model!r} with {self.transcoders!r}, {self.n_layers} layers{state})"

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, BOS included, checked against the model.

        Raises:
            InputError: An empty prompt, one longer than the model's context, ids outside the vocabulary.
        """
        return self._native.tokenize(_values.prompt(prompt))[1]

    def token(self, text: str) -> int:
        """The id of the token whose text is exactly ``text``, leading space included.

        Raises:
            InputError: It is no single token; names near ones.
        """
        return self._native.token(_values.text(text, "the token"))

    def token_texts(self, ids: Iterable[int]) -> list[str]:
        """The text of each token."""
        checked = _values.prompt(ids, "the ids")
        if isinstance(checked, str):
            raise TypeError("ids are whole numbers, not str")
        return self._native.texts(checked)

    def labels(self, features: Iterable[str]) -> dict[str, str]:
        """Names of features such as ``"0_39_7"`` or ``"0_39"``, of those that have one."""
        asked = [_values.text(feature, "a feature") for feature in features]
        places = []
        for name in asked:
            parts = name.split("_")
            if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in parts[:2]):
                raise InputError(f"expected layer_feature, such as 0_39, found {name!r}")
            places.append((min(int(parts[0]), 2**32 - 1), min(int(parts[1]), 2**32 - 1)))
        return {name: label for name, label in zip(asked, self._native.labels(places)) if label is not None}

    def direction(self, text: str) -> Direction:
        """A sum of tokens' directions, such as ``'" Austin" - " Sacramento"'``, or the tensor of a safetensors file
        (``FILE:NAME``), as ``--target-direction`` reads it.

        Raises:
            InputError: What is neither; a text that is no token; a file of several tensors.
        """
        found = self._native.directions(_values.text(text, "the direction"))
        if len(found) != 1:
            raise InputError(f"{text!r} names {len(found)} directions: name one of them with FILE:NAME")
        label, values = found[0]
        return Direction(np.asarray(values), label)

    def trace(
        self,
        prompt: Prompt,
        targets: Targets = None,
        *,
        position: int | None = None,
        max_logits: int = 10,
        logit_prob: float = 0.95,
        rows: int | Literal["all"] | None = None,
        theta: float | None = None,
        nodes: int | None = None,
        max_features: int | Literal["all"] | None = None,
        open_positions: str | None = None,
        batch_size: int = 512,
        decoders: bool = True,
        progress: Progress = None,
    ) -> Graph:
        """Traces a prompt: which tokens and features made the model predict what it predicts.

        Args:
            prompt: A text, to which a leading BOS token is added where the tokenizer has one, or token ids.
            targets: What to explain: a token by its text (leading space included) or id, a tuple of two whose
                difference is meant, a NumPy array ``[d_model]`` or a :class:`Direction`, a :class:`FeatureTarget`, an
                :class:`AttentionTarget`, or a list of these. The likeliest tokens where nothing is said.
            position: Position of logit targets; the last where nothing is said.
            max_logits: At most this many of the likeliest tokens are explained.
            logit_prob: No more tokens once their probabilities add up to this, in 0..=1.
            rows: Estimate the influence of all features from about this many rows; ``"all"``: from every row, which is
                exact. All up to 2,500 active features and else 1,000 where nothing is said.
            theta: As ``rows``: features with at least this much influence are all visited, others now and then.
            nodes: This many features become nodes, those of most influence.
            max_features: Choose rows as circuit-tracer does: at most this many features get one.
            open_positions: Only these positions have features and errors of their own, ``"3..7,12"`` or ``"auto:256"`` for
                the 256 that give most to what is explained; what attention reads elsewhere is one node a position.
            batch_size: With ``max_features``: a quarter of the features chosen between two looks at the influence.
            decoders: Whether the graph keeps the directions that its features write along; grouping uses them.
            progress: A bar or none, or a function that is told phase, units done and units in all.

        Raises:
            InputError: A prompt or targets that do not fit the model; settings outside their range.
            KeyboardInterrupt: An interrupt ended the call.
        """
        rows_of = _row_choice(rows, theta, nodes, max_features)
        with Reporter(progress) as reporter:
            return Graph(
                self._native.trace(
                    _values.prompt(prompt),
                    plain_targets(targets, self._native.token),
                    _values.optional_whole(position, "position"),
                    _values.whole(max_logits, "max_logits"),
                    _values.number(logit_prob, "logit_prob"),
                    rows_of,
                    None if open_positions is None else _values.text(open_positions, "open_positions"),
                    _values.whole(batch_size, "batch_size"),
                    _values.flag(decoders, "decoders"),
                    reporter.told,
                )
            )

    def intervene(
        self,
        prompt: Prompt,
        changes: Mapping[str, Change] | None = None,
        *,
        heads: Heads | None = None,
        mode: Mode = "free",
        constrain: tuple[int, int] | None = None,
        generate: int | None = None,
        keep_frozen: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        target: str | int | None = None,
        groups: Mapping[str, list[str]] | None = None,
        top: int = 10,
        progress: Progress = None,
    ) -> Run:
        """Runs a prompt with and without changes of features, and compares.

        Args:
            prompt: As of :meth:`trace`.
            changes: What the activation of each feature becomes: ``{"0_39_7": 0.0}`` (layer, feature, position) sets it,
                ``{"0_39_7": Scale(2)}`` multiplies it. Positions may be ``4..7`` (7 not included), ``4..`` (generated
                tokens too) or ``*``.
            heads: How attention heads are changed: ``{"18.6": "zero"}``, ``"mean"``, or ``("like", prompt)``.
            mode: What is held to the original run.
            constrain: Hold attention patterns, and the MLP outputs of layers ``a`` to ``b`` (``b`` not included).
            generate: Continue the prompt by so many tokens, with and without the changes.
            keep_frozen: Hold generated tokens too, where the mode holds something.
            temperature: Sample at this temperature; the likeliest token where nothing is said.
            top_p: Sample among the likeliest tokens that add up to this.
            seed: Of the sampling.
            target: The token that is followed; the likeliest one of the original run where nothing is said.
            groups: Features that are read as one, by name.
            top: Tokens and features that the report lists.
            progress: As of :meth:`trace`.

        Raises:
            InputError: Changes that do not fit model or prompt; nothing to change.
            KeyboardInterrupt: An interrupt ended the call.
        """
        plain = plain_changes(changes)
        plain_heads = _plain_heads(heads)
        if not plain and not plain_heads:
            raise InputError("there is nothing to change: give changes such as {'0_39_7': 0.0}")
        if constrain is not None and mode != "free":
            raise InputError("constrain is a mode of its own: leave mode out")
        keep_frozen = _values.flag(keep_frozen, "keep_frozen")
        continuation = None
        if generate is not None:
            if keep_frozen and mode == "free" and constrain is None:
                raise InputError("keep_frozen keeps what another mode than free holds")
            continuation = (
                _values.whole(generate, "generate"),
                None if temperature is None else _values.number(temperature, "temperature"),
                None if top_p is None else _values.number(top_p, "top_p"),
                _values.whole(seed, "seed", 0, 2**64 - 1),
                keep_frozen,
            )
        elif temperature is not None or top_p is not None or keep_frozen:
            raise InputError("temperature, top_p and keep_frozen are about generated tokens: give generate")
        if top_p is not None and temperature is None:
            raise InputError("top_p is about sampling: give temperature")
        with Reporter(progress) as reporter:
            native = self._native.intervene(
                _values.prompt(prompt),
                plain,
                plain_heads,
                _values.groups(groups, "groups"),
                (_values.text(mode, "mode"), _layers(constrain)),
                continuation,
                None if target is None else plain_token(target, self._native.token),
                _values.whole(top, "top", 0, 2**32),
                reporter.told,
            )
        return Run(native)

    def sweep(
        self,
        prompt: Prompt,
        feature: str,
        values: npt.ArrayLike,
        *,
        changes: Mapping[str, Change] | None = None,
        heads: Heads | None = None,
        mode: Mode = "free",
        constrain: tuple[int, int] | None = None,
        target: str | int | None = None,
        progress: Progress = None,
    ) -> Sweep:
        """Runs a prompt once for each value of a feature, many as one batch.

        Args:
            prompt: As of :meth:`trace`.
            feature: Layer, feature and position, such as ``"0_39_7"``.
            values: What it is set to. ``[n_points]``
            changes: What is changed in every run, too.
            heads: As of :meth:`intervene`.
            mode: As of :meth:`intervene`.
            constrain: As of :meth:`intervene`.
            target: As of :meth:`intervene`.
            progress: As of :meth:`trace`.

        Raises:
            InputError: As of :meth:`intervene`.
        """
        points = _values.vector(values, "the values").tolist()
        swept = (_values.feature(feature, "the feature"), points)
        return self._sweep(prompt, changes, swept, [], heads, mode, constrain, target, progress)

    def compare(
        self,
        prompt: Prompt,
        alternatives: Mapping[str, Mapping[str, Change]],
        *,
        changes: Mapping[str, Change] | None = None,
        heads: Heads | None = None,
        mode: Mode = "free",
        constrain: tuple[int, int] | None = None,
        target: str | int | None = None,
        progress: Progress = None,
    ) -> Sweep:
        """Runs a prompt once for each of several sets of changes, many as one batch.

        Args:
            prompt: As of :meth:`trace`.
            alternatives: Changes, as of :meth:`intervene`, by a name.
            changes: As of :meth:`sweep`; so are all that follow.

        Raises:
            InputError: As of :meth:`intervene`.
        """
        if not isinstance(alternatives, Mapping):
            raise TypeError(f"alternatives are a dict of changes, not {type(alternatives).__name__}")
        plain = [
            (_values.text(name, "the name of an alternative"), plain_changes(of, f"the changes of {name!r}"))
            for name, of in alternatives.items()
        ]
        return self._sweep(prompt, changes, None, plain, heads, mode, constrain, target, progress)

    def _sweep(
        self,
        prompt: Prompt,
        changes: Mapping[str, Change] | None,
        swept: tuple[str, list[float]] | None,
        alternatives: list[tuple[str, list[tuple[str, bool, float]]]],
        heads: Heads | None,
        mode: Mode,
        constrain: tuple[int, int] | None,
        target: str | int | None,
        progress: Progress,
    ) -> Sweep:
        if not alternatives and not (swept and swept[1]):
            raise InputError("there is nothing to compare")
        if constrain is not None and mode != "free":
            raise InputError("constrain is a mode of its own: leave mode out")
        with Reporter(progress) as reporter:
            return Sweep(
                self._native.sweep(
                    _values.prompt(prompt),
                    plain_changes(changes),
                    swept,
                    alternatives,
                    _plain_heads(heads),
                    (_values.text(mode, "mode"), _layers(constrain)),
                    None if target is None else plain_token(target, self._native.token),
                    reporter.told,
                )
            )

    def features(
        self,
        prompt: Prompt,
        *,
        pre_activations: Iterable[int] | bool = False,
        hooks: Iterable[str] = (),
        progress: Progress = None,
    ) -> Features:
        """Reads what a prompt does: every active feature, and on request more.

        Args:
            prompt: As of :meth:`trace`.
            pre_activations: Layers whose pre-activations are wanted, of all features; ``True``: all layers.
            hooks: Names of hook points whose tensors are wanted, such as ``"blocks.3.hook_resid_pre"``.
            progress: As of :meth:`trace`.

        Raises:
            InputError: A prompt that does not fit the model, layers or hook points that it does not have.
        """
        if isinstance(pre_activations, bool):
            layers = list(range(self.n_layers)) if pre_activations else []
        else:
            layers = [_values.whole(layer, "a layer") for layer in pre_activations]
        names = _values.names(hooks, "hooks")
        with Reporter(progress) as reporter:
            reading = self._native.read(_values.prompt(prompt), layers, names, reporter.told)
        return Features(reading, layers, names, self.n_features)

    def verify(
        self,
        graph: Graph,
        *,
        samples: int = 32,
        ablate: int = 20,
        seed: int = 0,
        node_threshold: float = 0.8,
        edge_threshold: float = 0.98,
        progress: Progress = None,
    ) -> dict[str, Any]:
        """Checks a graph against the model: do rows add up, are edges measured effects, do its predictions come true in
        the free model.

        Args:
            graph: A graph of this model.
            samples: Features, errors and tokens whose edges are measured, at most so many of each.
            ablate: How many of the most influential features are ablated, one by one and together.
            seed: Of the random features that the circuit is compared with.
            node_threshold: As of :meth:`Graph.prune`, for the circuit that is tested.
            edge_threshold: The same.
            progress: As of :meth:`trace`.

        Returns:
            The report of ``circuitscope verify --format json``: ``passed``, ``identity``, ``edges``, ``faithfulness``, ..

        Raises:
            InputError: A graph of another model.
        """
        if not isinstance(graph, Graph):
            raise TypeError(f"the graph is a circuitscope.Graph, not {type(graph).__name__}")
        with Reporter(progress) as reporter:
            report = self._native.verify(
                graph._native,
                _values.whole(samples, "samples", 0, 2**32),
                _values.whole(ablate, "ablate", 0, 2**32),
                _values.whole(seed, "seed", 0, 2**64 - 1),
                _values.number(node_threshold, "node_threshold"),
                _values.number(edge_threshold, "edge_threshold"),
                reporter.told,
            )
        found: dict[str, Any] = json.loads(report)
        return found


def _row_choice(
    rows: object, theta: object, nodes: object, max_features: object
) -> tuple[str, int | None, float | None, int | None]:
    """The options of the command line, and the same rules of which go together."""

    def count(value: object, what: str) -> int | Literal["all"] | None:
        return "all" if isinstance(value, str) and value == "all" else _values.optional_whole(value, what)

    n_rows, n_max = count(rows, "rows"), count(max_features, "max_features")
    n_nodes = _values.optional_whole(nodes, "nodes")
    least = None if theta is None else _values.number(theta, "theta")
    if n_rows is not None and least is not None:
        raise InputError("rows and theta say the same in two ways: give one of them")
    if n_max is not None and not (n_rows is None and least is None and n_nodes is None):
        raise InputError("max_features chooses rows in another way than rows, theta and nodes: give it alone")
    if n_max is not None:
        return ("all", None, None, None) if n_max == "all" else ("best first", n_max, None, None)
    if n_rows == "all":
        return ("all", None, None, None) if n_nodes is None else ("theta", None, 0.0, n_nodes)
    if n_rows is not None:
        return ("rows", n_rows, None, n_nodes)
    if least is not None:
        return ("theta", None, least, n_nodes)
    return ("auto", None, None, None) if n_nodes is None else ("strongest", None, None, n_nodes)


def _plain_heads(heads: Heads | None) -> list[tuple[str, str, str | None]]:
    if heads is None:
        return []
    if not isinstance(heads, Mapping):
        raise TypeError(f"heads are a dict such as {{'18.6': 'zero'}}, not {type(heads).__name__}")
    found: list[tuple[str, str, str | None]] = []
    for name, how in heads.items():
        name = _values.text(name, "a head")
        if isinstance(how, tuple) and len(how) == 2 and how[0] == "like":
            found.append((name, "like", _values.text(how[1], f"the prompt that head {name} is like")))
        else:
            found.append((name, _values.text(how, f"what head {name} becomes"), None))
    return found


def _layers(constrain: object) -> tuple[int, int] | None:
    if constrain is None:
        return None
    if not isinstance(constrain, tuple) or len(constrain) != 2:
        raise TypeError("constrain is a pair of layers (a, b), b not included")
    return (_values.whole(constrain[0], "constrain"), _values.whole(constrain[1], "constrain"))


__all__ = ["Heads", "Mode", "Scale", "Target", "Tracer"]
