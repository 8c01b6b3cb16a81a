#!/bin/sh
# Trains three small Imps (Phi, Qwen2, Phi-3), and asks plain transformers and llama.cpp the questions that `eval` has asked. Ends with
# 1 if one of transformers' answers differs, or more than one of llama.cpp's from f16 weights, whose sums are in another order. For
# quantized weights llama.cpp rounds activations, so of those answers it only prints how many are equal. Last, it prints how many weights
# differ between `merge` and peft's merging.
set -eu
cd "$(dirname "$0")/../.."
here=benches/formats
venv=target/formats
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
cmp -s "$here/requirements.txt" "$venv/requirements.txt" || {
    "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
}
cargo build --release --locked
work=target/formats-work
target/release/imp-flow run "$here/pipeline.toml" --cache "$work/cache" --artifacts "$work/artifacts"
made="$work/artifacts/formats"
failed=0
for family in phi qwen2 phi3; do
    "$venv/bin/python" "$here/transformers_check.py" "$made/${family}_llava" "$made/${family}_answers" "$made/shapes" || failed=1
    "$venv/bin/python" "$here/llama_check.py" "$made/${family}_f16" "$made/${family}_answers" "$made/shapes" || failed=1
    "$venv/bin/python" "$here/llama_check.py" "$made/${family}_q4" "$made/${family}_q4_answers" "$made/shapes" || true
done
"$venv/bin/python" "$here/peft_check.py" target/release/imp-flow "$made/phi" "$made/siglip" || failed=1
exit $failed
