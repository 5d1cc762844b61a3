"""Edges of each source file that fuzzing reaches: of what `FUZZ_COVERAGE` wrote, as a table.

    fuzz/coverage.py PROGRAM FILE..
"""

import bisect
import collections
import pathlib
import re
import subprocess
import sys

program, files = sys.argv[1], sys.argv[2:]
reached = collections.defaultdict(bool)
for name in files:
    with open(name) as file:
        for line in file:
            address, is_reached = line.split()
            reached[int(address, 16)] |= is_reached == "1"

symbols = []
listed = subprocess.run(["nm", "-C", "--defined-only", program], capture_output=True, text=True, check=True)
for line in listed.stdout.splitlines():
    address, kind, name = line.split(" ", 2)
    if kind in "tTwW":
        symbols.append((int(address, 16), name))
symbols.sort()
addresses = [address for address, _ in symbols]

# A function's own path, or that of the type whose method it is: `<circuitscope::text::Safe as core::fmt::Display>::fmt`.
ROOM = re.compile(r"^<*(?:impl |&|mut )*circuitscope::((?:[a-z0-9_]+::)+)")
sources = pathlib.Path(__file__).resolve().parent.parent / "src"


def source_file(path):
    """The file of a path of modules, which may go on with types and functions."""
    for n in range(len(path), 0, -1):
        for file in ("/".join(path[:n]) + ".rs", "/".join(path[:n]) + "/mod.rs"):
            if (sources / file).is_file():
                return file
    return "lib.rs"


edges = collections.defaultdict(lambda: [0, 0])
for address, is_reached in reached.items():
    name = symbols[bisect.bisect_right(addresses, address) - 1][1]
    if found := ROOM.match(name):
        file = source_file(found.group(1).rstrip(":").split("::"))
        edges[file][0] += is_reached
        edges[file][1] += 1
for file, (n_reached, n) in sorted(edges.items()):
    if n_reached:
        print(f"| `{file}` | {n_reached} | {n} | {100 * n_reached / n:.0f} % |")
