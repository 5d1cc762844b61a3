# What `just` can do; `just ci` is what must pass before a change lands.

# All that CI runs
ci:
    bash .ci/run

# The cheap part of it: formatting, dependencies, features, lints, documentation
check:
    bash .ci/run a

# Trace the demo prompt
demo:
    cargo run --release -- trace "The capital of the state containing Dallas is"

test:
    cargo test --release

# Row phase against gemm, rows per second, influence and pruning, circuits
bench:
    cargo bench --bench rows
    cargo bench --bench graph
    cargo bench --bench circuits
    cargo bench --bench batch
    cargo bench --bench ops

# The Python package: built, installed, tested, its notebooks run
python what="all":
    python/run {{what}}

# The CUDA build against a driver that computes on the CPU
cuda-on-cpu:
    tests/on_cpu/run test --test it

# Every reader of foreign files, fuzzed for so many seconds in all
fuzz seconds="600":
    fuzz/run {{seconds}}

# Writes that fail, full disks, little memory, kills: the table of docs/reliability.md
faults:
    cargo test --release --test it -- faults::in_full --ignored --nocapture

# On a machine with an NVIDIA GPU and the CUDA toolkit: all tests on it against the CPU's results, then its speed
gpu:
    cargo build --release --features cuda
    CIRCUITSCOPE_DEVICE=cuda cargo test --release --features cuda
    CIRCUITSCOPE_DEVICE=cuda cargo bench --features cuda --bench ops
    CIRCUITSCOPE_DEVICE=cuda cargo bench --features cuda --bench rows
