"""Many prompts on many machines, with Ray Data: ``pip install circuitscope[ray]``.

>>> import circuitscope.ray                                             # doctest: +SKIP
>>> done = circuitscope.ray.trace_dataset("prompts.jsonl", "/shared/graphs", num_cpus=2)     # doctest: +SKIP
>>> done.to_pandas().replacement_score.mean()                           # doctest: +SKIP

Actors hold the model and trace one prompt after another. What is done is in the output folder, one summary a prompt,
written after the prompt's graphs and whole or not at all: a worker that is lost costs the prompts that it was at, a second
run does only what is missing, and whatever is done twice gives the same bytes under the same name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np

from . import AttentionTarget, Direction, Error, FeatureTarget, InputError, Tracer, __version__, _values
from ._values import PathLike

#: Prompts: a Ray dataset with a row each, the name of a JSON Lines file, or records.
Source: TypeAlias = Union[Any, PathLike, Iterable[Mapping[str, Any]]]

#: What a record may say of how its prompt is traced: arguments of :meth:`circuitscope.Tracer.trace`.
SETTINGS = (
    "position",
    "max_logits",
    "logit_prob",
    "rows",
    "theta",
    "nodes",
    "max_features",
    "open_positions",
    "batch_size",
)

#: What ends the name of a summary.
SUMMARY = ".summary.json"

#: Hexadecimal digits of a record's key.
KEY_DIGITS = 16

#: Characters that a slug has at most.
MAX_SLUG = 60


def trace_dataset(
    source: Source,
    out_dir: PathLike,
    *,
    model: PathLike | None = None,
    transcoders: PathLike | None = None,
    device: str = "auto",
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    raw: bool = False,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    actors: int | tuple[int, int] | None = None,
    batch_size: int = 8,
    memory: int | None = None,
    **settings: Any,
) -> Any:
    """Traces many prompts on a Ray cluster, each once.

    Args:
        source: A Ray dataset, a JSON Lines file or records. Each has a ``prompt`` (a text) or ``tokens`` (ids), and may
            have a ``slug``, ``targets`` and settings of its own. A target is a token's text or id, a list of two (their
            difference), ``{"feature": "3_41_7"}``, ``{"attention": "18.6@18:7", "versus": ..}`` or
            ``{"direction": [..], "label": ..}``.
        out_dir: Where results go: a folder that all machines of the cluster see.
        model: As of :class:`circuitscope.Tracer`; every machine must find it under this name.
        transcoders: The same.
        device: The same.
        node_threshold: As of :meth:`circuitscope.Graph.prune`.
        edge_threshold: The same.
        raw: Whether raw graphs are written, too; they are some hundred times as large as pruned ones.
        num_cpus: CPUs of one actor, a fraction too; an actor computes with as many threads, at least one.
        num_gpus: GPUs of one actor, a fraction too.
        actors: How many actors, or the least and the most; as many as the cluster has room for where nothing is said.
        batch_size: Prompts that an actor takes at once.
        memory: Bytes that an actor is thought to need; Ray places actors by it.
        **settings: Arguments of :meth:`circuitscope.Tracer.trace` for records without settings of their own.

    Returns:
        A Ray dataset of summaries, one row a record in no promised order: ``key``, ``slug``, ``prompt``, ``error``
        (empty where the prompt was traced), ``prediction``, ``probability``, ``n_tokens``, ``n_active``, ``n_nodes``,
        ``n_edges`` (of the circuit), ``replacement_score``, ``completeness_score``, ``seconds``, ``files``, ``host``,
        ``is_new`` (whether it was made in this run).

        In the folder are ``SLUG-KEY.json`` (the circuit), with ``raw`` ``SLUG-KEY.safetensors``, ``SLUG-KEY.summary.json``
        and, in the end, ``index.jsonl`` with the summaries of this source, sorted.

        A record that fails is a row with an ``error``, and is tried again in the next run. A record that is there twice
        is traced once and is one row.

    Raises:
        InputError: Records or settings that make no sense, before anything is computed.
        ImportError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError("many machines need Ray: pip install 'circuitscope[ray]'") from None

    folder = Path(_values.path(out_dir, "the output folder")).absolute()
    wrong = sorted(set(settings) - set(SETTINGS))
    if wrong:
        raise InputError(f"there is no setting {wrong[0]!r}; there are {', '.join(SETTINGS)}")
    if not 0 < _values.number(num_cpus, "num_cpus") or not 0 <= _values.number(num_gpus, "num_gpus"):
        raise InputError(f"an actor needs CPUs: num_cpus is {num_cpus}, num_gpus {num_gpus}")
    least, most = _pool(actors)
    plan = {
        "model": None if model is None else _values.path(model, "the model"),
        "transcoders": None if transcoders is None else _values.path(transcoders, "the transcoders"),
        "device": _values.text(device, "the device"),
        "node_threshold": _values.number(node_threshold, "node_threshold"),
        "edge_threshold": _values.number(edge_threshold, "edge_threshold"),
        "raw": _values.flag(raw, "raw"),
        "settings": settings,
        "folder": str(folder),
        "threads": max(1, math.floor(num_cpus)),
    }
    if isinstance(source, ray.data.Dataset):
        rows: Iterable[Mapping[str, Any]] = source.iter_rows()
    elif isinstance(source, (str, os.PathLike)):
        rows = read_jsonl(source)
    else:
        rows = source
    records: dict[str, str] = {}
    for at, row in enumerate(rows):
        record = _plain(row, f"record {at + 1}")
        records.setdefault(key_of(record, plan), json.dumps(record))
    folder.mkdir(parents=True, exist_ok=True)
    found = {key: _summary_in(folder, key) for key in records}
    missing = [(key, record) for key, record in records.items() if found[key] is None]
    made: list[dict[str, Any]] = []
    if missing:
        batch = _values.whole(batch_size, "batch_size", 1, 2**20)
        blocks = math.ceil(len(missing) / batch)
        dataset = ray.data.from_items(
            [{"key": key, "record": record} for key, record in missing], override_num_blocks=blocks
        )
        # Ray Data starts lost actors again, and gives their work to others, as often as it takes.
        remote: dict[str, Any] = {"num_cpus": num_cpus}
        if num_gpus:
            remote["num_gpus"] = num_gpus
        if memory is not None:
            remote["memory"] = _values.whole(memory, "memory", 1)
        if most is None:
            room = ray.cluster_resources()
            fits = [int(room.get("CPU", 0) / num_cpus)] + ([int(room.get("GPU", 0) / num_gpus)] if num_gpus else [])
            most = max(1, min(*fits, blocks) if fits else 1)
            least = 1
        summaries = dataset.map_batches(
            _Tracing,
            fn_constructor_args=(plan,),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(min_size=min(least, most), max_size=most),
            **remote,
        ).materialize()
        made = [json.loads(row["summary"]) for row in summaries.iter_rows()]
    rows_of = {key: {**summary, "is_new": False} for key, summary in found.items() if summary is not None}
    rows_of.update({summary["key"]: {**summary, "is_new": True} for summary in made})
    lost = [key for key in records if key not in rows_of]
    if lost:
        raise Error(f"{len(lost)} records came back with no answer, the first of them {records[lost[0]]}")
    ordered = sorted(rows_of.values(), key=lambda summary: (summary["slug"], summary["key"]))
    lines = "".join(
        json.dumps({name: value for name, value in row.items() if name != "is_new"}, sort_keys=True) + "\n"
        for row in ordered
    )
    _write(folder / "index.jsonl", lines)
    return ray.data.from_items(ordered)


def read_jsonl(path: PathLike) -> Iterator[dict[str, Any]]:
    """The records of a JSON Lines file: an object a line, empty lines left out.

    Raises:
        InputError: A line that is no object; names file and line.
        OSError: The file cannot be read.
    """
    name = _values.path(path)
    with open(name, encoding="utf-8") as lines:
        for at, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{name}, line {at}: {error}") from None
            if not isinstance(record, dict):
                raise InputError(f"{name}, line {at}: expected an object, found {type(record).__name__}")
            yield record


def key_of(record: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """What tells a record from others: a hash of all that its result depends on, 16 hexadecimal digits."""
    asked = {name: value for name, value in record.items() if name != "slug"}
    relevant = ("model", "transcoders", "node_threshold", "edge_threshold", "raw", "settings")
    text = json.dumps([__version__, asked, {name: plan[name] for name in relevant}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def _plain(row: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A record as JSON has it, checked as far as that goes without the model."""
    if not isinstance(row, Mapping):
        raise InputError(f"{what} is no object with a prompt: {row!r}")
    record: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            value = value.tolist()
        elif isinstance(value, np.generic):
            value = value.item()
        # Columns that a row leaves empty.
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        record[name] = value
    wrong = sorted(set(record) - {"prompt", "tokens", "slug", "targets", *SETTINGS})
    if wrong:
        raise InputError(f"{what} has {wrong[0]!r}, which is none of prompt, tokens, slug, targets, {', '.join(SETTINGS)}")
    if ("prompt" in record) == ("tokens" in record):
        raise InputError(f"{what} needs a prompt or tokens, one of them")
    if "prompt" in record:
        record["prompt"] = _values.text(record["prompt"], f"the prompt of {what}")
    else:
        record["tokens"] = _values.prompt(record["tokens"], f"the tokens of {what}")
    if "slug" in record:
        record["slug"] = _values.text(record["slug"], f"the slug of {what}")
    try:
        return dict(json.loads(json.dumps(record)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {error}") from None


def _pool(actors: Any) -> tuple[int, int | None]:
    if actors is None:
        return 1, None
    if isinstance(actors, tuple) and len(actors) == 2:
        least, most = (_values.whole(n, "actors", 1, 2**20) for n in actors)
        if least > most:
            raise InputError(f"actors are at least {least} and at most {most}")
        return least, most
    count = _values.whole(actors, "actors", 1, 2**20)
    # A cluster that loses machines goes on with those that are left.
    return 1, count


def _target(target: Any) -> Any:
    """A target as :meth:`circuitscope.Tracer.trace` takes it."""
    if isinstance(target, dict):
        if "feature" in target:
            return FeatureTarget(target["feature"])
        if "attention" in target:
            return AttentionTarget(target["attention"], target.get("versus"))
        if "direction" in target:
            return Direction(np.asarray(target["direction"], float), target.get("label", "direction"))
        raise InputError(f"a target has a feature, an attention score or a direction: {target}")
    return tuple(target) if isinstance(target, list) else target


def _slug(record: Mapping[str, Any]) -> str:
    text = str(record.get("slug") or record.get("prompt") or "tokens")
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_SLUG].strip("-") or "prompt"


def _summary_in(folder: Path, key: str) -> dict[str, Any] | None:
    """What an earlier run says of a record, if all its files are there."""
    for path in folder.glob(f"*-{key}{SUMMARY}"):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(summary, dict) and all((folder / name).is_file() for name in summary.get("files", [])):
            return summary
    return None


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


class _Tracing:
    """An actor: the model, and one prompt after another."""

    def __init__(self, plan: dict[str, Any]) -> None:
        # Before the first call, which starts the threads.
        os.environ["RAYON_NUM_THREADS"] = str(plan["threads"])
        self._plan = plan
        self._folder = Path(plan["folder"])
        self._tracer = Tracer(plan["model"], plan["transcoders"], plan["device"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        summaries = [self._once(str(key), json.loads(record)) for key, record in zip(batch["key"], batch["record"])]
        return {"summary": np.array([json.dumps(summary) for summary in summaries], dtype=object)}

    def _once(self, key: str, record: dict[str, Any]) -> dict[str, Any]:
        # Where a worker was lost, what it had done is done.
        found = _summary_in(self._folder, key)
        return found if found is not None else self._trace(key, record)

    def _trace(self, key: str, record: dict[str, Any]) -> dict[str, Any]:
        plan, start = self._plan, time.monotonic()
        slug = _slug(record)
        summary: dict[str, Any] = {
            "key": key,
            "slug": slug,
            "prompt": record.get("prompt", ""),
            "error": "",
            "prediction": "",
            "probability": 0.0,
            "n_tokens": 0,
            "n_active": 0,
            "n_nodes": 0,
            "n_edges": 0,
            "replacement_score": 0.0,
            "completeness_score": 0.0,
            "files": [],
            "host": socket.gethostname(),
        }
        try:
            settings = {**plan["settings"], **{name: record[name] for name in SETTINGS if name in record}}
            targets = [_target(target) for target in record.get("targets", [])]
            prompt = record["prompt"] if "prompt" in record else record["tokens"]
            graph = self._tracer.trace(prompt, targets or None, progress=False, **settings)
            circuit = graph.prune(plan["node_threshold"], plan["edge_threshold"])
            name = f"{slug}-{key}"
            files = [f"{name}.json"]
            circuit.save(self._folder / files[0])
            if plan["raw"]:
                files.append(f"{name}.safetensors")
                graph.save(self._folder / files[1])
            summary.update(
                prompt=graph.prompt,
                prediction=graph.targets[0],
                probability=float(graph.target_probabilities[0]),
                n_tokens=graph.n_pos,
                n_active=len(graph.active_features),
                n_nodes=len(circuit),
                n_edges=len(circuit.edges),
                replacement_score=graph.replacement_score,
                completeness_score=graph.completeness_score,
                files=files,
            )
        except (Error, TypeError) as error:
            # The record's own fault: the others go on.
            summary["error"] = str(error) or type(error).__name__
        summary["seconds"] = time.monotonic() - start
        if not summary["error"]:
            _write(self._folder / f"{slug}-{key}{SUMMARY}", json.dumps(summary, sort_keys=True) + "\n")
        return summary


__all__ = ["key_of", "read_jsonl", "trace_dataset"]
