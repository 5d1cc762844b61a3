"""Runs the notebooks of examples/notebooks, each in a folder of its own; with ``--update`` keeps what they show.

A notebook that names the real model runs where CIRCUITSCOPE_SMOLLM2_GGUF and CIRCUITSCOPE_SMOLLM2_TRANSCODERS are set.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
REAL_MODEL = ("CIRCUITSCOPE_SMOLLM2_GGUF", "CIRCUITSCOPE_SMOLLM2_TRANSCODERS")


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum(
        any(kind.startswith("image/") for kind in output.get("data", {})) or "<svg" in str(output.get("data", {}).get("text/html", ""))
        for output in outputs
    )


def run(path: Path, update: bool) -> bool:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if pictures(notebook) == 0 and not update:
        sys.exit(f"{path.name} has no pictures in it: python/run notebooks --update puts them in")
    if any(name in cell.source for name in REAL_MODEL for cell in notebook.cells) and not all(map(os.environ.get, REAL_MODEL)):
        print(f"{path.name}: NOT RUN, for {' and '.join(REAL_MODEL)} are not set")
        return False
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    if pictures(notebook) == 0:
        sys.exit(f"{path.name} has drawn nothing")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    if update:
        nbformat.write(notebook, path)
    print(f"{path.name}: {len(notebook.cells)} cells, {pictures(notebook)} pictures, {time.monotonic() - start:.1f} s")
    return True


def main() -> None:
    update = "--update" in sys.argv[1:]
    done = [run(path, update) for path in sorted(FOLDER.glob("*.ipynb"))]
    if sum(done) < 3:
        sys.exit(f"{sum(done)} notebooks ran, expected three")


main()
