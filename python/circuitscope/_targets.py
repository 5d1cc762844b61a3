"""What to explain, and how to change a feature, in words other than numbers and strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from . import _values
from ._errors import InputError


class Direction:
    """A direction of the final norm's output, explained as it is.

    Attributes:
        values: ``[d_model]``, finite and not all zero.
        label: What graphs call it.

    Args:
        values: ``[d_model]`` numbers of any NumPy type, in any memory order; taken as float32.
        label: What graphs call it.

    Raises:
        InputError: Another number of dimensions; values that are not finite, or all zero.
    """

    values: npt.NDArray[np.float32]
    label: str

    def __init__(self, values: npt.ArrayLike, label: str = "direction") -> None:
        self.values = _values.vector(values, "the direction")
        if not self.values.any():
            raise InputError("a direction of zeros asks for nothing")
        self.label = _values.text(label, "the direction's label")

    def __repr__(self) -> str:
        return f"Direction({self.label!r}, {len(self.values)} values)"


@dataclass(frozen=True)
class FeatureTarget:
    """The pre-activation of a feature at a position.

    Attributes:
        feature: ``"layer_feature_position"``, such as ``"3_41_7"``.
    """

    feature: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature", _values.feature(self.feature, "the feature"))


@dataclass(frozen=True)
class AttentionTarget:
    """A head's attention score before the softmax, explained from both sides.

    Attributes:
        score: ``"LAYER.HEAD@QUERY:KEY"``, such as ``"18.6@18:7"``.
        versus: Nothing; the position of a key, whose score is subtracted; or ``"rivals"``, all other keys, each by its
            share of the attention that is left to them.
    """

    score: str
    versus: int | Literal["rivals"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", _values.text(self.score, "the score"))
        if self.versus not in (None, "rivals"):
            object.__setattr__(self, "versus", _values.whole(self.versus, "the other key"))


@dataclass(frozen=True)
class Scale:
    """A change that multiplies an activation: by 0 it is off, by 2 it is doubled."""

    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _values.single(self.factor, "the factor"))


#: A token by its exact text (leading space included) or id; two of them, whose logits' difference is meant; a direction,
#: as values or with a name; a feature; an attention score.
Target: TypeAlias = Union[
    str,
    int,
    "tuple[str | int, str | int]",
    "npt.NDArray[np.floating[Any]]",
    Direction,
    FeatureTarget,
    AttentionTarget,
]

#: One target, or a list of them.
Targets: TypeAlias = Union[Target, "list[Target]", None]

#: What an activation is set to, or scaled by.
Change: TypeAlias = Union[float, Scale]


def plain_targets(targets: object, token: Any) -> list[tuple[Any, ...]]:
    """Targets as the native side takes them; ``token`` looks texts up."""
    if targets is None:
        return []
    listed: Sequence[object] = targets if isinstance(targets, list) else [targets]
    return [_plain_target(target, token) for target in listed]


def _plain_target(target: object, token: Any) -> tuple[Any, ...]:
    if isinstance(target, np.ndarray):
        target = Direction(target)
    if isinstance(target, Direction):
        return ("direction", target.values.tobytes(), target.label)
    if isinstance(target, FeatureTarget):
        return ("feature", target.feature)
    if isinstance(target, AttentionTarget):
        return ("attention", target.score, target.versus)
    if isinstance(target, tuple):
        if len(target) != 2:
            raise InputError(f"a difference is of two tokens, not of {len(target)}")
        return ("difference", *(plain_token(part, token) for part in target))
    return ("token", plain_token(target, token))


def plain_token(value: object, token: Any) -> int:
    """A token's id, of its text or of itself."""
    if isinstance(value, str):
        return int(token(_values.text(value, "a token")))
    return _values.whole(value, "a token's id", 0, _values.MAX_TOKEN)


def plain_changes(changes: object, what: str = "the changes") -> list[tuple[str, bool, float]]:
    """Changes as the native side takes them: the feature, whether it is scaled, and the number."""
    if changes is None:
        return []
    if not hasattr(changes, "items"):
        raise TypeError(f"{what} are a dict such as {{'0_39_7': 0.0}}, not {type(changes).__name__}")
    found = []
    for name, change in changes.items():
        feature = _values.feature(name, f"a feature in {what}")
        if isinstance(change, Scale):
            found.append((feature, True, change.factor))
        else:
            found.append((feature, False, _values.single(change, f"the value of {feature}")))
    return found


__all__ = ["AttentionTarget", "Change", "Direction", "FeatureTarget", "Scale", "Target", "Targets"]
