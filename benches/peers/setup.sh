#!/bin/sh
# Creates a virtual environment for the programs that the benchmarks compare with, and prints the path of its Python. The
# environment is target/peers, for models and data (a CPU-only PyTorch is enough; PIP_INDEX_URL and PIP_EXTRA_INDEX_URL choose
# its source); with the argument `runner`, it is target/peers-runner, for pipelines.
set -eu
cd "$(dirname "$0")/../.."
venv=target/peers${1:+-$1}
requirements=benches/peers/${1:+$1-}requirements.txt
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
cmp -s "$requirements" "$venv/requirements.txt" || {
    "$venv/bin/pip" install --quiet -r "$requirements"
    cp "$requirements" "$venv/requirements.txt"
}
echo "$venv/bin/python"
