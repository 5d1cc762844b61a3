"""What can go wrong."""

from __future__ import annotations


class Error(Exception):
    """What circuitscope could not do, in the library's words; causes and a hint follow, one line each.

    Attributes:
        kind: What sort of thing went wrong: ``"io"``, ``"format"``, ``"mismatch"``, ``"not found"``, ``"request"``,
            ``"too large"``, ``"network"``, ``"device"``.
        hint: What can be done about it, where that is known.
    """

    kind: str = "other"
    hint: str | None = None


class InputError(Error, ValueError):
    """A request that makes no sense, names what is not there, or is larger than what can be done; a damaged file."""

    kind = "request"


class FileError(Error, OSError):
    """A file, folder or pipe could not be read or written."""

    kind = "io"

    # `OSError` shows a number and a file of its own.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
