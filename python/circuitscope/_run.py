"""What an intervention did, what a sweep did, and what a prompt does."""

from __future__ import annotations

import html
import json
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _native, _values
from ._errors import InputError


class TokenProbability(NamedTuple):
    """A next token.

    Attributes:
        token: Its text.
        id: Its vocabulary id.
        probability: In 0..=1.
        logit: The model's logit.
    """

    token: str
    id: int
    probability: float
    logit: float


class Distribution:
    """What may come next.

    Attributes:
        logits: At the last position, read-only. ``[d_vocab]``
    """

    def __init__(self, logits: npt.NDArray[np.float32], native: _native.Run) -> None:
        self.logits = logits
        self._native = native

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Of every token, adding up to 1. ``[d_vocab]``"""
        logits = self.logits.astype(np.float64)
        powers = np.exp(logits - logits.max())
        found: npt.NDArray[np.float64] = powers / powers.sum()
        found.flags.writeable = False
        return found

    def top(self, k: int = 10) -> list[TokenProbability]:
        """The ``k`` likeliest tokens; of equal ones the lower id first."""
        k = min(_values.whole(k, "k", 0, 2**32), len(self.logits))
        order = np.argsort(-self.logits, kind="stable")[:k]
        texts = self._native.texts(order.tolist())
        return [
            TokenProbability(text, int(at), float(self.probabilities[at]), float(self.logits[at]))
            for text, at in zip(texts, order)
        ]

    def __getitem__(self, token: int) -> float:
        """The probability of a token, by its id."""
        at = _values.whole(token, "a token's id", 0, len(self.logits) - 1)
        return float(self.probabilities[at])

    def __repr__(self) -> str:
        return "Distribution: " + ", ".join(f"{t.token!r} {t.probability:.3f}" for t in self.top(5))


class Run:
    """A prompt with and without changes: what :meth:`Tracer.intervene` returns.

    Attributes:
        before: The next token without the changes.
        after: The same with them.
    """

    def __init__(self, native: _native.Run) -> None:
        self._native = native
        self.before = Distribution(np.asarray(native.array("logits_before")), native)
        self.after = Distribution(np.asarray(native.array("logits_after")), native)

    @property
    def kl(self) -> float:
        """How far the changed distribution is from the original one, in nats: Σ p·ln(p/q), p the original."""
        return self._native.kl

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of the changed run at the last position; those of the original are ``before.logits``. ``[d_vocab]``"""
        return self.after.logits

    @cached_property
    def report(self) -> dict[str, Any]:
        """Everything that was compared, as ``circuitscope intervene --format json`` prints it: ``target``, ``tokens``,
        ``groups``, ``features``, ``continuation``."""
        found: dict[str, Any] = json.loads(self.to_json())
        return found

    def to_json(self) -> str:
        """The report as text: the same bytes that ``circuitscope intervene --format json`` prints."""
        return self._native.json()

    @property
    def target(self) -> dict[str, Any]:
        """The token that was followed, before and after: ``text``, ``token_id``, ``probability_before``, ``rank_before``,
        ``probability_after``, ``rank_after``, ``logit_change``."""
        return dict(self.report["target"])

    @property
    def features(self) -> list[dict[str, Any]]:
        """The features that changed most: ``layer``, ``pos``, ``feature``, ``label``, ``before``, ``after``."""
        return list(self.report["features"])

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """What became of the groups that were read, by name: ``before``, ``after``, ``percent_after``, .."""
        return {group["name"]: group for group in self.report.get("groups", [])}

    @property
    def generated_before(self) -> str | None:
        """What the unchanged model goes on with; nothing where it was not asked for."""
        continuation = self.report.get("continuation")
        return None if continuation is None else str(continuation["original"])

    @property
    def generated(self) -> str | None:
        """What the changed model goes on with; nothing where it was not asked for."""
        continuation = self.report.get("continuation")
        return None if continuation is None else str(continuation["changed"])

    def text(self) -> str:
        """The comparison as ``circuitscope intervene`` prints it."""
        return self._native.text()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"


class Sweep:
    """A prompt under many changes: what :meth:`Tracer.sweep` and :meth:`Tracer.compare` return."""

    def __init__(self, native: _native.Sweep) -> None:
        self._native = native

    @cached_property
    def report(self) -> dict[str, Any]:
        """As ``circuitscope intervene --sweep --format json`` prints it: ``target``, ``original_probability``, ``points``."""
        found: dict[str, Any] = json.loads(self.to_json())
        return found

    def to_json(self) -> str:
        """The report as text: the same bytes that ``circuitscope intervene --sweep --format json`` prints."""
        return self._native.json()

    @property
    def target(self) -> str:
        """The token that was followed."""
        return str(self.report["target"])

    @property
    def names(self) -> list[str]:
        """What each point is called. ``[n_points]``"""
        return [point["name"] for point in self.report["points"]]

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """What the feature was set to; NaN where no feature was swept. ``[n_points]``"""
        return np.array([point.get("value", np.nan) for point in self.report["points"]], float)

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Probability of the followed token, in 0..=1. ``[n_points]``"""
        return self._column("target_probability")

    @cached_property
    def logits(self) -> npt.NDArray[np.float64]:
        """Its logit. ``[n_points]``"""
        return self._column("target_logit")

    @cached_property
    def kl(self) -> npt.NDArray[np.float64]:
        """How far each distribution is from the original one, in nats. ``[n_points]``"""
        return self._column("kl_divergence")

    @property
    def top_tokens(self) -> list[str]:
        """The likeliest token of each point. ``[n_points]``"""
        return [point["top_token"] for point in self.report["points"]]

    def _column(self, name: str) -> npt.NDArray[np.float64]:
        return np.array([point[name] for point in self.report["points"]], float)

    def svg(self) -> str:
        """The target's probability, drawn as SVG."""
        return self._native.svg()

    def __len__(self) -> int:
        return len(self.report["points"])

    def __repr__(self) -> str:
        start = f"Sweep of {len(self)} points, {self.target!r} {self.report['original_probability']:.3f} without changes"
        rows = [
            f"  {point['name']}  {point['target_probability']:.3f}  likeliest {point['top_token']!r}"
            for point in self.report["points"][:20]
        ]
        more = [f"  and {len(self) - 20} more"] if len(self) > 20 else []
        return "\n".join([start, *rows, *more])

    def _repr_svg_(self) -> str:
        return self.svg()


class Features:
    """What a prompt does in the model: what :meth:`Tracer.features` returns.

    Attributes:
        prompt: The prompt's text.
        prompt_tokens: The text of every token. ``[n_pos]``
        tokens: Token ids, BOS included. ``[n_pos]``
        active: Every active feature, ascending: layer, position, feature. ``[n_active, 3]``
        activations: Their activations. ``[n_active]``
        logits: At the last position. ``[d_vocab]``
        pre_activations: Of the layers that were asked for, ``[n_pos, n_features]`` each.
        hooks: The tensors at the hook points that were asked for, by name, shaped as in TransformerLens without the batch.
    """

    def __init__(self, reading: dict[str, Any], layers: list[int], hooks: list[str], n_features: list[int]) -> None:
        self.prompt: str = reading["prompt"]
        self.prompt_tokens: list[str] = reading["prompt_tokens"]
        self.tokens: npt.NDArray[np.int64] = np.array(reading["tokens"], np.int64)
        self.active: npt.NDArray[np.uint32] = np.asarray(reading["features"])
        self.activations: npt.NDArray[np.float32] = np.asarray(reading["activations"])
        self.logits: npt.NDArray[np.float32] = np.asarray(reading["logits"])
        self.pre_activations: dict[int, npt.NDArray[np.float32]] = {
            layer: np.asarray(values) for layer, values in zip(layers, reading["pre_activations"])
        }
        self.hooks: dict[str, npt.NDArray[np.float32]] = {
            name: np.asarray(values) for name, values in zip(hooks, reading["hooks"])
        }
        self._n_features = n_features

    @property
    def ids(self) -> list[str]:
        """The active features as the command line writes them. ``[n_active]``"""
        return [f"{layer}_{feature}_{pos}" for layer, pos, feature in self.active.tolist()]

    def to_dict(self) -> dict[str, float]:
        """Activations by the features' ids: what :meth:`Tracer.intervene` takes."""
        return dict(zip(self.ids, self.activations.tolist()))

    def at(self, pos: int) -> dict[str, float]:
        """As :meth:`to_dict`, of one position."""
        pos = _values.whole(pos, "the position", 0, len(self.tokens) - 1)
        return {name: value for name, value in self.to_dict().items() if name.endswith(f"_{pos}")}

    def dense(self, layer: int) -> npt.NDArray[np.float32]:
        """Activations of one layer, zeros included. ``[n_pos, n_features]``

        Raises:
            InputError: No such layer.
        """
        layer = _values.whole(layer, "the layer", 0, len(self._n_features) - 1)
        found = np.zeros((len(self.tokens), self._n_features[layer]), np.float32)
        of_layer = self.active[:, 0] == layer
        found[self.active[of_layer, 1], self.active[of_layer, 2]] = self.activations[of_layer]
        return found

    def __len__(self) -> int:
        """How many features are active."""
        return len(self.activations)

    def __getitem__(self, feature: str) -> float:
        """The activation of a feature such as ``"0_39_7"``: 0 where it is off.

        Raises:
            InputError: What is no feature of the model at a position of the prompt.
        """
        name = _values.feature(feature, "the feature")
        parts = name.split("_")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise InputError(f"expected layer_feature_position, such as 0_39_7, found {name!r}")
        layer, index, pos = map(int, parts)
        if layer >= len(self._n_features) or index >= self._n_features[layer] or pos >= len(self.tokens):
            raise InputError(f"there is no feature {name}: layers, features or positions end before")
        where = (self.active == (layer, pos, index)).all(axis=1)
        return float(self.activations[where][0]) if where.any() else 0.0

    def __repr__(self) -> str:
        return f"Features: {len(self)} active at {len(self.tokens)} positions of {self.prompt!r}"
