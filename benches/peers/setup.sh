#!/bin/sh
# Makes the virtual environment of the peers that the benches compare with: target/peers.
# A CPU-only PyTorch is enough; set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to choose where it comes from.
set -eu
cd "$(dirname "$0")/../.."
venv=target/peers
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, torchvision, transformers, peft' 2>/dev/null ||
    "$venv/bin/pip" install --quiet -r benches/peers/requirements.txt
echo "$venv/bin/python"
