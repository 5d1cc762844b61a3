"""Arguments, checked: what passes here is safe for the other side of the border, and what does not names itself."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from ._errors import InputError

#: A prompt: a text, to which a leading BOS token is added where the tokenizer has one, or token ids that are used as
#: they are.
Prompt: TypeAlias = Union[str, Sequence[int], "npt.NDArray[np.integer[Any]]"]

#: The name of a file or folder.
PathLike: TypeAlias = Union[str, "os.PathLike[str]"]

#: Above everything that counts or numbers something.
MAX_COUNT = 2**53

#: Token ids are 32 bits wide.
MAX_TOKEN = 2**32 - 1


def text(value: object, what: str) -> str:
    """A string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has a surrogate at character {error.start}, which is no character: {value[error.start]!a}"
        ) from None
    return str(value)


def path(value: object, what: str = "the path") -> str:
    """The name of a file."""
    try:
        name = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"{what} is a string or a path, not {type(value).__name__}") from None
    if not isinstance(name, str):
        raise TypeError(f"{what} is a string or a path, not {type(name).__name__}")
    if "\0" in name:
        raise InputError(f"{what} has a null character")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise InputError(f"{what} cannot be the name of a file: {name!a}") from None
    return name


def whole(value: object, what: str, least: int = 0, most: int = MAX_COUNT) -> int:
    """A whole number of this range."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} is a whole number, not {type(value).__name__}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} is a whole number, not {type(value).__name__}") from None
    if not least <= number <= most:
        shown = number if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"
        raise InputError(f"{what} is {shown}, expected {least} to {most}")
    return number


def optional_whole(value: object, what: str, least: int = 0, most: int = MAX_COUNT) -> int | None:
    """As :func:`whole`, or nothing."""
    return None if value is None else whole(value, what, least, most)


def flag(value: object, what: str) -> bool:
    """True or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} is true or false, not {type(value).__name__}")
    return bool(value)


def number(value: object, what: str) -> float:
    """A finite number."""
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{what} is a number, not {type(value).__name__}")
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{what} is a number, not {type(value).__name__}") from None
    except OverflowError:
        raise InputError(f"{what} is too large") from None
    if not math.isfinite(found):
        raise InputError(f"{what} is {found}, expected a finite number")
    return found


def single(value: object, what: str) -> float:
    """A number that is finite as a 32-bit float, too."""
    found = number(value, what)
    if abs(found) > float(np.finfo(np.float32).max):
        raise InputError(f"{what} is {found}, more than a 32-bit float holds")
    return found


def prompt(value: object, what: str = "the prompt") -> str | list[int]:
    """A text, or token ids."""
    if isinstance(value, str):
        return text(value, what)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise TypeError(f"{what} has token ids, which are whole numbers, not {value.dtype}")
        if value.ndim != 1:
            raise InputError(f"{what} has token ids of shape {list(value.shape)}, expected one dimension")
        value = value.tolist()
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{what} is a string or a list of token ids, not {type(value).__name__}")
    return [whole(token, f"token {at} of {what}", 0, MAX_TOKEN) for at, token in enumerate(value)]


def vector(value: object, what: str) -> npt.NDArray[np.float32]:
    """One dimension of finite numbers, in a row in memory."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{what} is no list of numbers") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{what} has numbers, not {array.dtype}")
    if array.ndim != 1:
        raise InputError(f"{what} has the shape {list(array.shape)}, expected one dimension")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(found).all():
        at = int(np.flatnonzero(~np.isfinite(found))[0])
        raise InputError(f"{what} has {array[at]} at {at}, which is no finite 32-bit float")
    return found


def names(value: object, what: str) -> list[str]:
    """A list of strings; one string is a list of one."""
    if value is None:
        return []
    if isinstance(value, str):
        return [text(value, what)]
    if not isinstance(value, Iterable):
        raise TypeError(f"{what} is a list of strings, not {type(value).__name__}")
    return [text(item, f"an entry of {what}") for item in value]


def feature(value: object, what: str) -> str:
    """``"L_F_P"``, or layer, feature and position."""
    if isinstance(value, str):
        return text(value, what)
    if isinstance(value, tuple) and len(value) == 3:
        return "_".join(str(whole(part, what)) for part in value)
    raise TypeError(f"{what} is a string such as '0_39_7' or (layer, feature, position), not {type(value).__name__}")


def groups(value: object, what: str) -> list[tuple[str, list[str]]]:
    """Names of supernodes, and of the nodes in each."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} are a dict of lists, not {type(value).__name__}")
    found = []
    for name, members in value.items():
        name = text(name, f"a name in {what}")
        if isinstance(members, str) or not isinstance(members, Iterable):
            raise TypeError(f"{what}[{name!r}] is a list of nodes, not {type(members).__name__}")
        found.append((name, [feature(member, f"a node in {what}[{name!r}]") for member in members]))
    return found
