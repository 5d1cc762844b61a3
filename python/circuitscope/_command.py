"""The command line, as ``circuitscope`` and as ``python -m circuitscope``."""

from __future__ import annotations

import os
import sys

from . import _native


def main() -> None:
    """Runs the program with the arguments of this process, and ends it with the program's exit code."""
    code = _native.main(["circuitscope", *sys.argv[1:]])
    # Nothing of Python's is left to do, and threads that compute are not waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
