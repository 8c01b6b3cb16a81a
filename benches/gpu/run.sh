#!/usr/bin/env bash
# All that is to be known about a GPU, in order, in at most 26 minutes, on a machine without a Rust toolchain and a network:
#
#     benches/gpu/run.sh [--tiny] [PART...]
#
#     machine   driver, cuBLASLt, card
#     kernels   every kernel against f64, and a second run for the same bits
#     ops       every operation on the host, the emulated device and the card, in f32 and bf16, against f64
#     products  cuBLASLt against products in f32 on the host, for the shapes of the model families
#     fixtures  whole models against the reference: features, logits, losses, gradients, optimizer steps, tokens
#     resume    a training stage through the program, interrupted and resumed, on all cards: the bytes of one card
#     models    writes random models of full size (8 GB below target/), and has the driver compile the kernels and Python load
#               PyTorch, so that no case waits for a cold disk; where they are missing, the parts below begin with it
#     lora, features, decode, prefill     against PyTorch, transformers and peft, in turns
#     profile   each case by kernel
#
#     table     writes docs/GPU.md's tables from the results; `run.sh table FILE...` from these files
#     build     build.sh, which makes what the parts need; run it where there is a Rust toolchain
#
# Without parts: all, and then the tables. `checks` are the parts up to resume, which need no Python, `speed` the others. A
# part that fails or takes too long does not keep the next from running; the end names it, and the exit status is 1. Where a
# command may take ten minutes only, these do all of it: `checks`, `models lora profile` and `features decode prefill`.
#
# Results are lines of JSON in results.jsonl, and everything printed is in log.txt, in the folder $OUT, by default
# benches/gpu/results. IMP_FLOW_PYTHON is the Python that has PyTorch (python3). With --tiny everything is small and PyTorch is
# left out: with IMP_FLOW_EMULATED_GPU=0, or with the library of stages/model/examples/fake_cuda in the place of CUDA's, it runs
# without a GPU, in a minute.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
tiny=()
if [ "${1:-}" = --tiny ]; then
    tiny=(--tiny)
    export IMP_FLOW_PEERS=no
    shift
fi

checks=(machine kernels ops products fixtures resume)
speed=(models lora features decode prefill profile)
parts=()
for name in "$@"; do
    case $name in
        checks) parts+=("${checks[@]}") ;;
        speed) parts+=("${speed[@]}") ;;
        *) parts+=("$name") ;;
    esac
done
everything=no
[ "${#parts[@]}" -gt 0 ] || { parts=("${checks[@]}" "${speed[@]}"); everything=yes; }
[ "${parts[0]}" != build ] || exec benches/gpu/build.sh

# What was built: brought along, or made here.
built=${IMP_FLOW_GPU_BUILT:-benches/gpu/built}
if [ -z "${IMP_FLOW_GPU_BUILT:-}" ] && command -v cargo >/dev/null; then
    if [ "${#tiny[@]}" -gt 0 ]; then
        built=target/gpu-bench
        benches/gpu/build.sh dev "$built" || exit 1
    elif [ ! -x "$built/gpu" ]; then
        benches/gpu/build.sh || exit 1
    fi
fi
[ -x "$built/gpu" ] || { echo "run: there is nothing in $built; run benches/gpu/build.sh where there is a Rust toolchain"; exit 1; }

out=${OUT:-benches/gpu/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export IMP_FLOW_RESULTS=$out/results.jsonl
log=$out/log.txt
touch "$IMP_FLOW_RESULTS" "$log"
first=$(wc -l <"$IMP_FLOW_RESULTS")

# Puts the folder of a library that the loader doesn't find on its path.
find_library() {
    # Not with -q, which ends before ldconfig does, and `pipefail` takes that for a failure.
    if ldconfig -p 2>/dev/null | grep "$1" >/dev/null; then return; fi
    local found folder given=${LD_LIBRARY_PATH:-}
    for folder in ${given//:/ }; do
        if ls "$folder" 2>/dev/null | grep "$3" >/dev/null; then return; fi
    done
    found=$(find / \( -path /proc -o -path /sys -o -path '*/compat' -o -path '*/stubs' \) -prune -o -name "$2" -print 2>/dev/null | sort -V | tail -n 1)
    [ -z "$found" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${found%/*}
}
if [ -z "${IMP_FLOW_EMULATED_GPU:-}" ]; then
    find_library 'libcuda\.so\.1' 'libcuda.so.1' '^libcuda\.so'
    find_library 'libcublasLt\.so' 'libcublasLt.so.1[23]' '^libcublasLt\.so'
fi
# The test programs were told another checkout's place when they were built.
export CARGO_MANIFEST_DIR=$root/stages/model
export PYTHONUNBUFFERED=1
# What a panic says must not drown in where it happened.
export RUST_BACKTRACE=0

# Runs a part within so many seconds.
part() {
    local name=$1 budget=$2 began=$SECONDS status why=
    shift 2
    printf '\n== %s (at most %s s)\n' "$name" "$budget" | tee -a "$log"
    timeout -k 10 "$budget" "$@" >"$log.part" 2>&1
    status=$?
    cat "$log.part" >>"$log"
    # What went wrong is seldom in more than the last lines; results of products are many.
    tail -n "$([ "$status" = 0 ] && echo 12 || echo 60)" "$log.part" | cut -c 1-400
    rm -f "$log.part"
    case $status in
        0) ;;
        124 | 137) why='too slow' ;;
        *) why="exit status $status" ;;
    esac
    printf '{"run":"%s","ok":%s,"why":"%s","seconds":%s}\n' "$name" "$([ "$status" = 0 ] && echo true || echo false)" \
        "$why" $((SECONDS - began)) >>"$IMP_FLOW_RESULTS"
}

machine() {
    local here
    if here=$(git rev-parse --short=12 HEAD 2>/dev/null) && [ "${here:-}" != "$(cut -d ' ' -f 1 "$built/COMMIT")" ]; then
        echo "WARNING: $built was built from another commit than this checkout's, $here"
    fi
    "$built/imp-flow" doctor
    nvidia-smi 2>/dev/null
    "$built/gpu" machine "$(cat "$built/COMMIT")" "$(date -u +%F)"
}

# The test programs on the card. A tiny run proves only that they start and find what they need: `cargo test` runs them all.
tests() {
    local program=$1 few=$2
    shift 2
    if [ -n "$tiny_option" ]; then set -- "$few"; fi
    IMP_FLOW_TEST_GPU=0 "$built/$program" --color never "$@"
}

models() {
    local python=
    if [ "${IMP_FLOW_PEERS:-}" != no ]; then
        "${IMP_FLOW_PYTHON:-python3}" -c 'import torch, transformers, peft' &
        python=$!
    fi
    # In Python's absence its cases say so.
    "$built/gpu" $tiny_option models && { [ -z "$python" ] || wait "$python" || true; }
}

# `timeout` runs programs only, and arrays are not inherited.
export -f machine tests models
export built tiny_option=${tiny[*]}
# What the driver makes of the kernels, kept from one process to the next wherever the home folder is.
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$root/target/cuda-cache}

tables() {
    local document=docs/GPU.md
    # Figures of an emulated device are of no interest: only that they can be written.
    if [ "${#tiny[@]}" -gt 0 ]; then
        document=$out/GPU.md
        cp docs/GPU.md "$document"
    fi
    if [ $# -gt 0 ]; then set -- "$@"; else set -- "$IMP_FLOW_RESULTS"; fi
    "$built/gpu" table "$document" "$@" && echo "wrote the tables of $document" || return
    # On a machine that is lent only this comes back.
    [ "$document" -ef "$out/GPU.md" ] || cp "$document" "$out/GPU.md"
}

if [ "${parts[0]}" = table ]; then
    tables "${parts[@]:1}"
    exit
fi
models_part() { part models 90 bash -c models; }
for name in "${parts[@]}"; do
    case $name in
        lora | features | decode | prefill | profile)
            [ -e "target/bench-models/gpu${tiny_option:+-tiny}/done" ] || models_part ;;
    esac
    case $name in
        machine) part machine 30 bash -c machine ;;
        kernels) part kernels 100 bash -c 'tests kernels device:: device::' ;;
        ops) part ops 140 bash -c 'tests ops activations' ;;
        products) part products 140 "$built/gpu" "${tiny[@]}" products ;;
        fixtures) part fixtures 90 bash -c 'tests places dropout_has_one_mask' ;;
        resume) part resume 90 "$built/gpu" "${tiny[@]}" resume "$built/imp-flow" ;;
        models) models_part ;;
        lora) part lora 300 "$built/gpu" "${tiny[@]}" speed lora ;;
        features) part features 130 "$built/gpu" "${tiny[@]}" speed features ;;
        decode) part decode 200 "$built/gpu" "${tiny[@]}" speed decode ;;
        prefill) part prefill 130 "$built/gpu" "${tiny[@]}" speed prefill ;;
        profile) part profile 90 "$built/gpu" "${tiny[@]}" profile ;;
        *) part "$name" 1 sh -c "echo 'there is no such part'; exit 2" ;;
    esac
done
# A part's file of results is that of all calls; the end speaks of this one.
printf '\n'
"$built/gpu" summary "$first"
status=$?
if [ "$everything" = yes ]; then tables || status=1; fi
exit $status
