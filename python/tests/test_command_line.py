"""The same request gives the same bytes in Python and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DALLAS

import circuitscope as cs

#: Options of `trace`, and the arguments that say the same.
REQUESTS: dict[str, tuple[list[str], dict[str, object]]] = {
    "as it is": ([], {}),
    "two targets": (["--target", " Austin", "--target", " Sacramento"], {"targets": [" Austin", " Sacramento"]}),
    "difference": (["--target-diff", " Austin", " Sacramento"], {"targets": (" Austin", " Sacramento")}),
    "feature": (["--target-feature", "0_39_7"], {"targets": cs.FeatureTarget("0_39_7")}),
    "attention": (["--target-attention", "1.0@8:7", "--rival"], {"targets": cs.AttentionTarget("1.0@8:7", "rivals")}),
    "position": (["--position", "5"], {"position": 5}),
    "logits": (["--max-logits", "3", "--logit-prob", "0.5"], {"max_logits": 3, "logit_prob": 0.5}),
    "best first": (["--max-features", "20"], {"max_features": 20}),
    "sampled": (["--rows", "30"], {"rows": 30}),
    "theta": (["--theta", "0.01", "--nodes", "15"], {"theta": 0.01, "nodes": 15}),
    "strongest": (["--nodes", "15"], {"nodes": 15}),
    "no decoders": (["--no-decoders"], {"decoders": False}),
}


@pytest.mark.parametrize("options, arguments", REQUESTS.values(), ids=REQUESTS)
def test_traces_are_the_same_bytes(command, tracer: cs.Tracer, tmp_path: Path, options, arguments) -> None:
    printed = command("trace", DALLAS, "--slug", "g", "--out-dir", "theirs", "--quiet", *options)
    graph = tracer.trace(DALLAS, **arguments)
    circuit = graph.prune()
    graph.save(tmp_path / "g.safetensors")
    circuit.save(tmp_path / "g.json")
    for name in ("g.safetensors", "g.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    assert str(circuit) == printed


def test_token_ids_are_a_prompt_too(command, tracer: cs.Tracer, tmp_path: Path) -> None:
    tokens = tracer.tokenize(DALLAS)
    command("trace", "--tokens", ",".join(map(str, tokens)), "--slug", "g", "--quiet")
    for prompt in (tokens, np.array(tokens), np.array(tokens, np.uint16)):
        tracer.trace(prompt).save(tmp_path / "g.safetensors")
        assert (tmp_path / "g.safetensors").read_bytes() == (tmp_path / "graphs/g.safetensors").read_bytes()


def test_a_sum_of_tokens_is_the_same_direction(command, tracer: cs.Tracer, tmp_path: Path) -> None:
    text = '" Austin" + " Dallas" - 2 * " Sacramento"'
    command("trace", DALLAS, "--target-direction", text, "--slug", "g", "--quiet")
    direction = tracer.direction(text)
    tracer.trace(DALLAS, direction).save(tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").read_bytes() == (tmp_path / "graphs/g.safetensors").read_bytes()
    # In any memory order and width.
    strange = np.repeat(direction.values.astype(np.float64), 2)[::2]
    assert not strange.flags.c_contiguous
    again = tracer.trace(DALLAS, cs.Direction(strange, direction.label))
    assert np.array_equal(again.adjacency, tracer.trace(DALLAS, direction).adjacency)


INTERVENTIONS: dict[str, tuple[list[str], dict[str, object]]] = {
    "set and ablate": (["--set", "0_39_7=0", "--set", "0_303_7=13.87"], {"changes": {"0_39_7": 0.0, "0_303_7": 13.87}}),
    "scale": (["--scale", "0_39_7=-1.5"], {"changes": {"0_39_7": cs.Scale(-1.5)}}),
    "generate": (["--ablate", "0_39_7", "--generate", "5"], {"changes": {"0_39_7": 0}, "generate": 5}),
    "sample": (
        ["--ablate", "0_39_7", "--generate", "4", "--temperature", "0.8", "--top-p", "0.9", "--seed", "7"],
        {"changes": {"0_39_7": 0}, "generate": 4, "temperature": 0.8, "top_p": 0.9, "seed": 7},
    ),
    "direct": (["--ablate", "0_39_7", "--direct"], {"changes": {"0_39_7": 0}, "mode": "direct"}),
    "frozen": (["--ablate", "0_39_*", "--freeze-attention"], {"changes": {"0_39_*": 0}, "mode": "frozen-attention"}),
    "constrain": (["--ablate", "0_39_5..8", "--constrain", "0..2"], {"changes": {"0_39_5..8": 0}, "constrain": (0, 2)}),
    "heads": (["--ablate-head", "1.0", "--ablate-head", "2.1@8=mean"], {"heads": {"1.0": "zero", "2.1@8": "mean"}}),
    "target": (
        ["--ablate", "0_39_7", "--target", " Sacramento", "--top", "3"],
        {"changes": {"0_39_7": 0}, "target": " Sacramento", "top": 3},
    ),
}


@pytest.mark.parametrize("options, arguments", INTERVENTIONS.values(), ids=INTERVENTIONS)
def test_interventions_are_the_same_bytes(command, tracer: cs.Tracer, options, arguments) -> None:
    run = tracer.intervene(DALLAS, **arguments)
    assert run.to_json() == command("intervene", DALLAS, *options, "--format", "json")
    if "--ablate" not in options[2:]:
        assert str(run) == command("intervene", DALLAS, *options)


def test_sweeps_are_the_same_bytes(command, tracer: cs.Tracer) -> None:
    sweep = tracer.sweep(DALLAS, "0_39_7", np.arange(-10, 11, 5), changes={"0_303_7": 13.87})
    options = ["--set", "0_303_7=13.87", "--sweep", "0_39_7=-10..10/5"]
    assert sweep.to_json() == command("intervene", DALLAS, *options, "--format", "json")
    assert sweep.values.tolist() == [-10, -5, 0, 5, 10]
    assert sweep.probabilities[-1] > sweep.probabilities[0]


def test_pictures_and_summaries_are_the_same_bytes(command, tracer: cs.Tracer, graph: cs.Graph, tmp_path: Path) -> None:
    command("trace", DALLAS, "--slug", "g", "--quiet")
    circuit = graph.prune()
    assert circuit.svg() == command("inspect", "graphs/g.safetensors", "--format", "svg")
    assert circuit.to_dot() == command("inspect", "graphs/g.safetensors", "--format", "dot")
    assert circuit.to_graphml() == command("inspect", "graphs/g.safetensors", "--format", "graphml")
    grouped = command("inspect", "graphs/g.safetensors", "--auto-group", "0.5", "--format", "svg")
    assert circuit.svg(auto_group=0.5) == grouped
    named = command("inspect", "graphs/g.json", "--group", "Texas=0_39_7,0_303_7", "--format", "svg", code=2)
    assert named == ""
    read = cs.Circuit.read(tmp_path / "graphs/g.json")
    assert read.svg() == command("inspect", "graphs/g.json", "--format", "svg")
    assert read.text(node="0_39_7") == command("inspect", "graphs/g.json", "--node", "0_39_7", "--no-dashboard")
    whole = json.loads(command("inspect", "graphs/g.safetensors", "--format", "json"))
    assert {name: whole[name] for name in circuit.summary()} == circuit.summary()
    pruned = cs.Circuit.read(tmp_path / "graphs/g.safetensors", node_threshold=0.5)
    assert str(pruned) == command("inspect", "graphs/g.safetensors", "--node-threshold", "0.5")


def test_supernodes_are_stored_as_inspect_stores_them(command, graph: cs.Graph, tmp_path: Path) -> None:
    circuit = graph.prune()
    group = [str(node) for node in circuit.strongest(2).id]
    circuit.save(tmp_path / "ours.json", supernodes={"strong": group}, pinned=group)
    command("trace", DALLAS, "--slug", "g", "--quiet")
    options = [option for node in group for option in ("--subgraph", node)]
    stored = json.loads((tmp_path / "ours.json").read_text(encoding="utf-8"))["qParams"]
    assert stored["supernodes"] == [["strong", *sorted(group, key=list(circuit.nodes.id).index)]]
    assert sorted(stored["pinnedIds"]) == sorted(group) and options
    assert "strong" in cs.Circuit.read(tmp_path / "ours.json").svg()


def test_verify_reports_what_the_command_line_reports(command, tracer: cs.Tracer, tmp_path: Path) -> None:
    command("trace", DALLAS, "--slug", "g", "--quiet")
    printed = json.loads(command("verify", "graphs/g.safetensors", "--format", "json"))
    report = tracer.verify(cs.Graph.read(tmp_path / "graphs/g.safetensors"))
    assert report["passed"] and printed["passed"]
    assert report["faithfulness"] == printed["faithfulness"]
    assert report["edges"] == printed["edges"]


def test_the_program_in_the_wheel_is_the_program(command, program: Path, tmp_path: Path) -> None:
    assert command("--version") == f"circuitscope {cs.__version__}\n"
    assert "trace" in command("--help")
    command("trace", code=2)
    command("inspect", "missing.json", code=2)
    module = subprocess.run([sys.executable, "-m", "circuitscope", "--version"], capture_output=True, text=True)
    assert module.stdout == command("--version")
    # A reader that has seen enough is no error.
    head = subprocess.run(
        f"'{program}' man | head -n 1", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert head.stdout and not head.stderr
