"""``python -m circuitscope``."""

from ._command import main

main()
