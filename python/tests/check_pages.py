"""The API's page holds every public name, and every one of them says what it is."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import circuitscope as cs


def main(page: str) -> None:
    text = Path(page).read_text(encoding="utf-8")
    problems = []
    for name in cs.__all__:
        thing = getattr(cs, name)
        if name.startswith("__"):
            continue
        if f'id="{name}"' not in text:
            problems.append(f"{name} is not on the page")
        members = [(name, thing)]
        if inspect.isclass(thing):
            members += [(f"{name}.{at}", part) for at, part in vars(thing).items() if not at.startswith("_")]
        for at, part in members:
            part = getattr(part, "__func__", part)
            described = inspect.getdoc(part)
            if (callable(part) or isinstance(part, property) or hasattr(part, "func")) and not described:
                problems.append(f"{at} has no docstring")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{page}: {len(cs.__all__) - 1} names, all described")


main(sys.argv[1])
