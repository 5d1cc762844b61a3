"""What the tests share: one open tracer, the prompt of the tutorial, the command line of the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import circuitscope as cs

DALLAS = "The capital of the state containing Dallas is"


@pytest.fixture(scope="session")
def tracer() -> cs.Tracer:
    return cs.Tracer()


@pytest.fixture(scope="session")
def graph(tracer: cs.Tracer) -> cs.Graph:
    return tracer.trace(DALLAS)


@pytest.fixture(scope="session")
def program() -> Path:
    """The command line that the wheel brought."""
    name = "circuitscope.exe" if os.name == "nt" else "circuitscope"
    path = Path(sys.executable).with_name(name)
    assert path.is_file(), f"the package has put no {name} beside {sys.executable}"
    return path


@pytest.fixture()
def command(program: Path, tmp_path: Path):
    """Runs the command line in an empty folder."""

    def run(*arguments: str, code: int = 0) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CIRCUITSCOPE_")}
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    return run
