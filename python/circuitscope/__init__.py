"""Attribution graphs of language models: which tokens and features made the model say that?

>>> import circuitscope as cs
>>> tracer = cs.Tracer()
>>> graph = tracer.trace("The capital of the state containing Dallas is")
>>> circuit = graph.prune(node_threshold=0.8, edge_threshold=0.98)
>>> len(circuit)
24
>>> run = tracer.intervene(graph.prompt, {"0_39_7": 0.0})
>>> run.before.top(1)[0].token
' Austin'
>>> run.kl > 0
True

A :class:`Tracer` holds a model with transcoders. It makes a :class:`Graph` of a prompt, which :meth:`Graph.prune` turns
into a :class:`Circuit`; :meth:`Tracer.intervene` changes features while the model runs (:class:`Run`),
:meth:`Tracer.sweep` does so many times (:class:`Sweep`), and :meth:`Tracer.features` reads what a prompt does
(:class:`Features`). Words and formulas are those of the project's ``docs/definitions.md``; positions, layers and features
are counted from 0. What goes wrong is an :class:`Error` in the library's words: :class:`InputError` for a request, which
is a :class:`ValueError` too, :class:`FileError` for a file, which is an :class:`OSError` too; what is of the wrong type is
a :class:`TypeError`.

Many prompts on many machines: :mod:`circuitscope.ray`.
"""

from ._circuit import Circuit, Path, Tables
from ._errors import Error, FileError, InputError
from ._graph import Graph
from ._native import version as _version
from ._run import Distribution, Features, Run, Sweep, TokenProbability
from ._targets import AttentionTarget, Direction, FeatureTarget, Scale
from ._tracer import Tracer

__version__: str = _version()

__all__ = [
    "AttentionTarget",
    "Circuit",
    "Direction",
    "Distribution",
    "Error",
    "FeatureTarget",
    "Features",
    "FileError",
    "Graph",
    "InputError",
    "Path",
    "Run",
    "Scale",
    "Sweep",
    "Tables",
    "TokenProbability",
    "Tracer",
    "__version__",
]
