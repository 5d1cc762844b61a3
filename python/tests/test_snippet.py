"""What the guide shows runs as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "python.md"
PLACES = [GUIDE, ROOT / "README.md", ROOT / "python" / "README.md"]

SNIPPET = '''
import circuitscope as cs
tracer = cs.Tracer()                       # atlas; or Tracer(model=.., transcoders=.., device="auto")
graph = tracer.trace("The capital of the state containing Dallas is")
graph                                      # in a notebook: the circuit as SVG with a summary; in a terminal: the text summary
graph.adjacency, graph.active_features, graph.nodes       # NumPy views without copies; nodes as records
circuit = graph.prune(node_threshold=0.8, edge_threshold=0.98)
circuit.to_networkx(); circuit.to_pandas(); circuit.paths(k=10); circuit.save("x.json"); circuit.svg()
run = tracer.intervene(prompt, {"0_39_7": 0.0, "0_303_7": 13.87}, generate=8)
run.before.top(5); run.kl; run.logits      # NumPy
tracer.features(prompt)                    # sparse activations; pre-activations and hooks by name on request
'''


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in PLACES:
        for at, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            # The rest of the README is about files of other programs.
            if "circuitscope as cs" in code or page == GUIDE:
                found.append((f"{page.name}-{at}", code))
    return found


def test_the_snippet_runs_in_a_program_of_its_own(tmp_path: Path) -> None:
    code = 'prompt = "The capital of the state containing Dallas is"\n' + SNIPPET
    check = "\nassert run.before.top(1)[0].token == ' Austin', run.before\nassert run.generated\n"
    subprocess.run([sys.executable, "-c", code + check], check=True, cwd=tmp_path)
    assert (tmp_path / "x.json").stat().st_size > 1000


@pytest.mark.parametrize("name, code", blocks(), ids=[name for name, _ in blocks()])
def test_code_on_the_pages_runs(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [module for module in ("ray", "torch", "circuit_tracer") if re.search(rf"\b{module}\b", code)]
    if needs or "SmolLM2" in code:
        pytest.skip(f"needs {needs or 'a model'}")
    monkeypatch.chdir(tmp_path)
    start = "import circuitscope as cs\nimport numpy as np\nprompt = 'The capital of the state containing Dallas is'\n"
    start += "tracer = cs.Tracer()\ngraph = tracer.trace(prompt)\ncircuit = graph.prune()\n"
    exec(compile(start + code, name, "exec"), {"__name__": "page"})
    assert os.getcwd() == str(tmp_path)


def test_docstrings_say_what_happens() -> None:
    import doctest

    import circuitscope

    assert doctest.testmod(circuitscope).failed == 0
