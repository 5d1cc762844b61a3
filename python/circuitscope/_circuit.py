"""A circuit: what pruning leaves of a graph."""

from __future__ import annotations

import html
import json
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from . import _native, _values
from ._errors import InputError
from ._values import PathLike

#: Supernodes by name: the nodes in each, by id or by any name that the command line knows (``0_39_7``, a label).
Groups = dict[str, list[str]]


class Path(NamedTuple):
    """A path through a circuit, source first.

    Attributes:
        nodes: Ids of the nodes that it goes through, both ends included.
        strength: Product of its edges' shares, in 0..=1.
        sign: -1 where an odd number of its edges is negative: then it weakens its end.
        names: What each node is called: the label of a feature, else the token's text at its position.
    """

    nodes: tuple[str, ...]
    strength: float
    sign: int
    names: tuple[str, ...]


class Tables(NamedTuple):
    """A circuit as two tables of pandas.

    Attributes:
        nodes: One row a node, by ``id``.
        edges: One row an edge: ``source`` and ``target`` (ids), ``weight``, ``share``.
    """

    nodes: Any
    edges: Any


class Circuit:
    """The nodes and edges that carry most of a graph's influence.

    :meth:`Graph.prune` makes it; :meth:`Circuit.read` reads a JSON graph, also circuit-tracer's. In a notebook it shows
    its picture, in a terminal its summary.
    """

    def __init__(self, native: _native.Circuit) -> None:
        self._native = native

    @classmethod
    def read(
        cls, path: PathLike, node_threshold: float | None = None, edge_threshold: float | None = None
    ) -> Circuit:
        """Opens a graph file: a JSON graph as it is, or pruned further where thresholds say so; a raw graph pruned.

        Raises:
            FileError: The file cannot be read.
            InputError: It is no graph, or damaged; thresholds outside 0..=1.
        """
        thresholds = [
            None if value is None else _values.number(value, name)
            for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold))
        ]
        return cls(_native.Circuit.read(_values.path(path), *thresholds))

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Where the circuit comes from: prompt, tokens, model, transcoders, thresholds, scores of the whole graph."""
        found: dict[str, Any] = json.loads(self._native.meta())
        return found

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return str(self.meta["prompt"])

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        return self._native.nodes()

    @cached_property
    def nodes(self) -> np.recarray[Any, Any]:
        """The nodes as records: ``id``, ``kind``, ``layer``, ``pos`` and ``feature`` (-1 where there is none), ``text``,
        ``label``, ``activation`` and ``probability`` (NaN where there is none), ``cumulative_influence`` (small is
        important) and ``share``, the part of the targets' weight that passes through the node. ``[n_nodes]``"""
        columns = self._columns
        n = len(columns["id"])

        def filled(name: str, nothing: Any) -> list[Any]:
            return [nothing if value is None else value for value in columns[name]]

        kinds: list[tuple[str, Any, Any]] = [
            ("id", str, columns["id"]),
            ("kind", str, columns["kind"]),
            ("layer", "i4", filled("layer", -1)),
            ("pos", "i4", columns["pos"]),
            ("feature", "i8", filled("feature", -1)),
            ("text", str, columns["text"]),
            ("label", str, filled("label", "")),
            ("activation", "f4", filled("activation", np.nan)),
            ("probability", "f4", filled("probability", np.nan)),
            ("cumulative_influence", "f8", filled("cumulative_influence", np.nan)),
            ("share", "f8", columns["share"]),
        ]
        width = {name: max(map(len, values), default=1) or 1 for name, kind, values in kinds if kind is str}
        records = np.empty(n, dtype=[(name, f"U{width[name]}" if kind is str else kind) for name, kind, _ in kinds])
        for name, _, values in kinds:
            records[name] = values
        records.flags.writeable = False
        return records.view(np.recarray)

    @cached_property
    def edges(self) -> np.recarray[Any, Any]:
        """The edges as records: ``source`` and ``target``, numbers of nodes; ``weight``, the direct effect; ``share``,
        ``|weight|`` over the sum of ``|weight|`` of all edges into the target. ``[n_edges]``"""
        source, target, weight, share = self._native.edges()
        records = np.empty(
            len(source), dtype=[("source", "i8"), ("target", "i8"), ("weight", "f4"), ("share", "f8")]
        )
        records["source"], records["target"], records["weight"], records["share"] = source, target, weight, share
        records.flags.writeable = False
        return records.view(np.recarray)

    def strongest(self, k: int = 10) -> np.recarray[Any, Any]:
        """The features and errors that most of the targets' weight passes through, strongest first: records as in
        :attr:`nodes`, at most ``k``."""
        found = self._native.strongest(_values.whole(k, "k", 0, 2**32))
        return self.nodes[np.array(found, dtype=np.intp)].view(np.recarray)

    def paths(
        self, k: int = 10, sources: str | list[str] | None = None, targets: str | list[str] | None = None
    ) -> list[Path]:
        """The strongest paths, at most ``k``.

        Args:
            k: How many, at most a million.
            sources: Names of nodes where they begin; all tokens where none is given.
            targets: Names of nodes where they end; the first target where none is given.

        Raises:
            InputError: Names that the circuit does not have; too many paths.
        """
        count = _values.whole(k, "k", 0, 2**32)
        summary = json.loads(
            self._native.summary(0, count, None, _values.names(sources, "sources"), _values.names(targets, "targets"))
        )
        return [
            Path(
                tuple(node["id"] for node in path["nodes"]),
                path["strength"],
                -1 if path["is_negative"] else 1,
                tuple(node.get("label") or node["text"] for node in path["nodes"]),
            )
            for path in summary["paths"]
        ]

    def summary(self, top: int = 10, paths: int = 5, node: str | None = None) -> dict[str, Any]:
        """The summary as ``circuitscope trace --format json`` prints it, as a dict.

        Args:
            top: Entries of every list.
            paths: How many of the strongest paths.
            node: The name of nodes whose inputs and outputs are wanted.

        Raises:
            InputError: A name that the circuit does not have.
        """
        found: dict[str, Any] = json.loads(
            self._native.summary(_count(top, "top"), _count(paths, "paths"), _name(node), [], [])
        )
        return found

    def text(self, top: int = 10, paths: int = 5, node: str | None = None) -> str:
        """The summary as ``circuitscope trace`` and ``inspect`` print it; arguments as of :meth:`summary`."""
        return self._native.text(_count(top, "top"), _count(paths, "paths"), _name(node))

    def to_networkx(self) -> Any:
        """The circuit as a ``networkx.DiGraph``: nodes by id with the columns of :attr:`nodes`, edges with ``weight`` and
        ``share``.

        Raises:
            ImportError: networkx is not installed.
        """
        import networkx

        columns = self._columns
        ids = columns["id"]
        graph = networkx.DiGraph(prompt=self.prompt)
        for at, node in enumerate(ids):
            graph.add_node(
                node, **{name: values[at] for name, values in columns.items() if name != "id" and values[at] is not None}
            )
        source, target, weight, share = self._native.edges()
        for s, t, w, part in zip(source, target, weight, share):
            graph.add_edge(ids[s], ids[t], weight=w, share=part)
        return graph

    def to_pandas(self) -> Tables:
        """The circuit as two tables of pandas.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        columns = dict(self._columns)
        ids = columns.pop("id")
        nodes = pandas.DataFrame(columns, index=pandas.Index(ids, name="id"))
        source, target, weight, share = self._native.edges()
        edges = pandas.DataFrame(
            {
                "source": [ids[at] for at in source],
                "target": [ids[at] for at in target],
                "weight": np.array(weight, np.float32),
                "share": share,
            }
        )
        return Tables(nodes, edges)

    def save(
        self, path: PathLike, supernodes: Groups | None = None, pinned: list[str] | None = None
    ) -> None:
        """Writes the circuit as JSON, which circuitscope's page and other viewers read: the same bytes that
        ``circuitscope trace`` writes under this name. All of it or nothing.

        Args:
            path: A name that ends in ``.json``.
            supernodes: Nodes that viewers show as one.
            pinned: Nodes that viewers show first.

        Raises:
            FileError: The file cannot be written.
            InputError: Another ending; a raw graph of that name; names that the circuit does not have.
        """
        groups = _values.groups(supernodes, "supernodes")
        self._native.save(_values.path(path), (groups, None), _values.names(pinned, "pinned"))

    def svg(
        self,
        supernodes: Groups | None = None,
        *,
        auto_group: float | None = None,
        max_nodes: int | None = None,
        edge_share: float | None = None,
        max_inputs: int | None = None,
        target_share: float | None = None,
    ) -> str:
        """The circuit drawn as SVG: the same bytes as ``circuitscope inspect --format svg``.

        Args:
            supernodes: Nodes that are drawn as one.
            auto_group: Also those that do the same, from this likeness on: a cosine in -1..=1, usually about 0.5.
            max_nodes: Features, errors and supernodes that are shown, the strongest [26].
            edge_share: Of every node's inputs, the strongest that make up this share [0.8].
            max_inputs: But no more than so many [4].
            target_share: Targets with less than this part of all targets' weight are left out [0.05].

        Raises:
            InputError: Names that the circuit does not have; a node in two supernodes; a share outside 0..=1.
        """
        return self._drawn("svg", supernodes, auto_group, max_nodes, edge_share, max_inputs, target_share)

    def png(self, supernodes: Groups | None = None, *, scale: float = 2.0, **settings: Any) -> bytes:
        """As :meth:`svg`, as PNG with ``scale`` pixels for one of the SVG."""
        scale = _values.number(scale, "scale")
        if not 0.0 < scale <= 20.0:
            raise InputError(f"scale is {scale}, expected more than 0, at most 20")
        return bytes(_native.png_of(self.svg(supernodes, **settings), scale))

    def to_dot(self, supernodes: Groups | None = None) -> str:
        """The circuit for Graphviz."""
        return self._drawn("dot", supernodes)

    def to_graphml(self, supernodes: Groups | None = None) -> str:
        """The circuit as GraphML."""
        return self._drawn("graphml", supernodes)

    def _drawn(
        self,
        format: str,
        supernodes: Groups | None,
        auto_group: float | None = None,
        max_nodes: int | None = None,
        edge_share: float | None = None,
        max_inputs: int | None = None,
        target_share: float | None = None,
    ) -> str:
        cut = None if auto_group is None else _values.number(auto_group, "auto_group")
        return self._native.drawn(
            format,
            (_values.groups(supernodes, "supernodes"), cut),
            _values.optional_whole(max_nodes, "max_nodes", 0, 2**32),
            None if edge_share is None else _values.number(edge_share, "edge_share"),
            _values.optional_whole(max_inputs, "max_inputs", 0, 2**32),
            None if target_share is None else _values.number(target_share, "target_share"),
        )

    def __len__(self) -> int:
        """How many nodes there are."""
        return self._native.sizes()[0]

    def __contains__(self, node: object) -> bool:
        return isinstance(node, str) and node in self._columns["id"]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_html_(self) -> str:
        # The picture has escaped what it quotes.
        return (
            f'<div style="overflow-x:auto">{self.svg()}</div>'
            f"<details><summary>summary</summary><pre>{html.escape(self.text())}</pre></details>"
        )


def _count(value: int, what: str) -> int:
    return _values.whole(value, what, 0, 2**32)


def _name(value: str | None) -> str | None:
    return None if value is None else _values.text(value, "the node")
