"""Progress of a long call, as a bar of tqdm or told to a function."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias, Union

#: ``True`` shows a bar, ``False`` none; ``None`` shows one where somebody may look at it (a notebook or a terminal) and
#: tqdm is installed, once a call has taken a second. A function is told phase, units done and units in all.
Progress: TypeAlias = Union[bool, Callable[[str, int, int], object], None]

#: Calls that take less show no bar, unless one is asked for.
AFTER_SECS = 1.0


class Reporter:
    """Hears of a call's progress while it is open."""

    def __init__(self, wanted: Progress) -> None:
        self._bar: Any = None
        self._phase = ""
        self._start = time.monotonic()
        self._after = 0.0 if wanted is True else AFTER_SECS
        self._make: Any = None
        #: What the call is given; nothing where nobody listens.
        self.told: Callable[[str, int, int], object] | None = None
        if wanted is None:
            wanted = "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())
        if wanted is True:
            self._make = _tqdm()
            self.told = self._show if self._make is not None else None
        elif wanted is not False:
            if not callable(wanted):
                raise TypeError(f"progress is true, false or a function, not {type(wanted).__name__}")
            self.told = wanted

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, phase: str, done: int, total: int) -> None:
        if time.monotonic() - self._start < self._after:
            return
        if self._bar is None or phase != self._phase:
            if self._bar is not None:
                self._bar.close()
            self._phase = phase
            self._bar = self._make(total=total, desc=phase, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def _tqdm() -> Any:
    try:
        with warnings.catch_warnings():
            # Without widgets it says so and goes on with text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm
