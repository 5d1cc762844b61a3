"""What a trace costs in Python, against the command line; and rates for many prompts.

    python python/benches/in_process.py [ROUNDS]

In turns, so that both see the same machine: `tracer.trace` in this process with the model open, and the phases `forward`
and `attribute` of a process of the command line, which has the model open by then too (`--format json --timings`). The model
is SmolLM2 where CIRCUITSCOPE_SMOLLM2_GGUF and CIRCUITSCOPE_SMOLLM2_TRANSCODERS name it, else `atlas`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import circuitscope as cs

CITIES = ["France", "Italy", "Spain", "Poland", "Norway", "Japan", "Egypt", "Chile"]


def seconds_of_command_line(program: str, setup: list[str], prompt: str, folder: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "CIRCUITSCOPE_DEVICE"}
    done = subprocess.run(
        [program, "trace", prompt, *setup, "--rows", "all", "--out-dir", folder, "--slug", "g", "--force", "--format", "json",
         "--timings", "--quiet"],
        capture_output=True, text=True, check=True, env=environment,
    )
    phases = {phase["name"]: phase["elapsed_secs"] for phase in json.loads(done.stdout)["timings"]}
    return float(phases["forward"] + phases["attribute"])


def main(rounds: int) -> None:
    gguf, transcoders = (os.environ.get(f"CIRCUITSCOPE_SMOLLM2_{name}") for name in ("GGUF", "TRANSCODERS"))
    setup = ["--model", gguf, "--transcoders", transcoders] if gguf and transcoders else []
    prompt = "The capital of France is" if setup else "The capital of the state containing Dallas is"
    program = os.environ.get("CIRCUITSCOPE") or str(Path(sys.executable).with_name("circuitscope"))
    assert shutil.which(program), program
    print(f"{'SmolLM2' if setup else 'atlas'}, {prompt!r}, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    tracer = cs.Tracer(gguf, transcoders) if setup else cs.Tracer()
    tracer.trace(prompt, rows="all", progress=False)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            start = time.perf_counter()
            tracer.trace(prompt, rows="all", progress=False)
            ours.append(time.perf_counter() - start)
            theirs.append(seconds_of_command_line(program, setup, prompt, folder))
    for name, times in (("tracer.trace", ours), ("circuitscope trace", theirs)):
        print(f"  {name:20} median {statistics.median(times):.3f} s, least {min(times):.3f} s, of {len(times)}")
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    print(f"  Python / command line: least {min(ours) / min(theirs):.3f}, median of pairs {statistics.median(ratios):.3f}")

    graph = tracer.trace(prompt, rows="all", progress=False)
    start = time.perf_counter()
    for _ in range(1000):
        _view = cs.Graph(graph._native).adjacency
    print(f"  graph.adjacency: {(time.perf_counter() - start) * 1000:.1f} µs for a view of {graph.adjacency.nbytes / 1e6:.1f} MB")

    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 20:
        text = prompt.replace("France", CITIES[count % len(CITIES)]) if setup else prompt
        tracer.trace(text, progress=False).prune().edges
        count += 1
    rate = count / (time.perf_counter() - start)
    print(f"  {60 * rate:.0f} prompts a minute in one process: 100,000 in {100_000 / rate / 3600:.1f} h on this machine")


main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
