#!/bin/sh
# Makes a virtual environment of peers that the benches compare with, and prints its Python: target/peers for models and data
# (a CPU-only PyTorch is enough; set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to choose where it comes from), or with the argument
# `runner` target/peers-runner for pipelines.
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
