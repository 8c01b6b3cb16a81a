# Shortcuts for `just` (https://just.systems). Each is a plain command that also works without it.

# List the recipes.
default:
    @just --list

# What must pass for every commit on main: format, clippy, docs, tests.
ci:
    .ci/run

# The tests. Arguments go to cargo: `just test -p imp-model ops`.
test *args:
    cargo test --workspace {{ args }}

# Train, quantize and measure the tiny model (about 3 minutes). Arguments go to imp-flow: `just tiny --set seed=2`.
tiny *args:
    cargo run --release -- run pipelines/tiny.toml {{ args }}

# All benchmarks of docs/BENCHMARKS.md. Makes the Python environments of the peers first (several GB).
bench: bench-model bench-stages bench-data bench-runner

# The network against PyTorch, transformers and peft. One case: `just bench-model decode`.
bench-model *case:
    cargo bench --bench model -- {{ case }}

# Whole training stages against the same stages in PyTorch.
bench-stages:
    cargo bench --bench stages

# Data preparation against Pillow and transformers. Other cases: `just bench-data open`, `just bench-data features`.
bench-data *case:
    cargo bench --bench data -- {{ case }}

# The runner against ninja, doit, Luigi, Snakemake and DVC.
bench-runner:
    cargo bench --bench runner

# Kill runs and stages at this many random points and compare what comes out. `cargo test` does 20 of them.
faults rounds="1000":
    IMP_FLOW_FAULT_ROUNDS={{ rounds }} cargo test --test e2e kills_at_random -- --nocapture

# Compile the GPU kernels to the PTX that is checked in (needs Python; takes NVRTC from PyPI). `just ptx --check` compares.
ptx *args:
    .ci/ptx {{ args }}

# What must be brought along to a machine with a GPU, in benches/gpu/built. `just gpu-build dev` is a debug build.
gpu-build *args:
    benches/gpu/build.sh {{ args }}

# All checks and comparisons on a GPU, and the tables of docs/GPU.md. One part: `just gpu products`.
gpu *parts:
    benches/gpu/run.sh {{ parts }}

# Slurm as an executor against a real Slurm of two nodes on this machine (needs root). One scene: `just slurm ctrl_c`.
slurm *scenes:
    .ci/slurm {{ scenes }}

# The report page in Chromium: clicks, zoom, filters, screenshots in target/page (needs node, npm and Chromium).
page:
    .ci/page

# Licences, advisories and origins of the dependencies (needs cargo-deny).
deny:
    cargo deny check

# A tarball for this kind of machine in dist/ of the target folder, and a file with its SHA-256 (as .ci/dist).
dist:
    .ci/dist
