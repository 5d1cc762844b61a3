# What `just` can do; `just ci` is what must pass before a change lands.

# Formatting, lints, tests, as CI runs them
ci:
    bash .ci/run

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
