"""Long calls: others go on meanwhile, an interrupt ends them, progress is told."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DALLAS

import circuitscope as cs

def hears() -> None:
    """In a new process: an interrupt is heard, also where whoever runs the tests in the background told it not to be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


LONG = np.linspace(-10, 10, 300_000)

INTERRUPTED = f"""
import sys, threading, time
import numpy as np
import circuitscope as cs
tracer = cs.Tracer()
print("begins", flush=True)
try:
    tracer.sweep({DALLAS!r}, "0_39_7", np.linspace(-10, 10, 300_000))
except KeyboardInterrupt:
    print("interrupted", flush=True)
# The tracer is as good as before.
print(tracer.trace({DALLAS!r}).targets[0], flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_an_interrupt_ends_a_call() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hears) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begins\n"
        time.sleep(1.0)
        assert program.poll() is None
        asked = time.monotonic()
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        assert time.monotonic() - asked < 10
        assert program.stdout.read().strip() == "Austin"
    assert program.returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for a thread by its name")
def test_an_interrupt_ends_the_command_line(program: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([program, "trace", "-"], text=True, preexec_fn=hears, **pipes) as running:
        assert running.stderr is not None
        threads = Path(f"/proc/{running.pid}/task")
        until = time.monotonic() + 60
        # The thread that hears of signals; the command waits for a prompt meanwhile.
        while not any(name.read_text() == "signals\n" for name in threads.glob("*/comm")):
            assert running.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=10) == 130
        # No traceback of Python's.
        assert running.stderr.read() == ""


def test_other_threads_go_on_meanwhile(tracer: cs.Tracer) -> None:
    counted, ended = 0, threading.Event()

    def work() -> None:
        tracer.sweep(DALLAS, "0_39_7", LONG[:2000])
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    # With the lock held by the call, this loop would not get on before its end.
    while not ended.is_set():
        counted += 1
        time.sleep(0.001)
    thread.join()
    assert counted > 20


def test_threads_share_a_tracer(tracer: cs.Tracer, graph: cs.Graph) -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(np.array_equal(tracer.trace(DALLAS).adjacency, graph.adjacency)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6


def test_progress_is_told_and_what_it_raises_ends_the_call(tracer: cs.Tracer) -> None:
    told: list[tuple[str, int, int]] = []
    tracer.sweep(DALLAS, "0_39_7", LONG[:3000], progress=lambda *step: told.append(step))
    assert told and all(isinstance(phase, str) and 0 <= done <= total for phase, done, total in told)

    class Enough(Exception):
        pass

    def stop(*_: object) -> None:
        raise Enough

    start = time.monotonic()
    with pytest.raises(Enough):
        tracer.sweep(DALLAS, "0_39_7", LONG, progress=stop)
    assert time.monotonic() - start < 20


def test_a_bar_is_shown_where_it_is_asked_for(tracer: cs.Tracer, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    tracer.sweep(DALLAS, "0_39_7", LONG[:3000], progress=True)
    assert "%" in capsys.readouterr().err
    tracer.sweep(DALLAS, "0_39_7", LONG[:50], progress=False)
    tracer.trace(DALLAS)
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out == ""


def test_nothing_needs_tqdm() -> None:
    code = f"""
import sys
sys.modules["tqdm"] = None
sys.modules["tqdm.auto"] = None
import circuitscope as cs
print(cs.Tracer().trace({DALLAS!r}, progress=True).targets[0])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "Austin"


def test_importing_brings_numpy_alone() -> None:
    code = """
import sys
import circuitscope
print([name for name in ("torch", "pandas", "networkx", "tqdm", "ray", "circuit_tracer") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
