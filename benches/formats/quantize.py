"""Times the quantizing of a model by imp-flow and by llama.cpp, in turns.

    quantize.py IMP_FLOW [ROUNDS [KEY=VALUE...]]

Run in the folder in which `imp-flow run .../decode.toml` was run, with the same changes; it needs llama-cpp-python, built for this
processor. imp-flow's times are those of the whole stage: starting, reading the merged folder, quantizing, hashing, writing the language
model, and vision tower and projector in f16. llama.cpp's are those of `llama_model_quantize` from a GGUF file of the language model in
f16 to another file. Both read from the page cache and write to the same disk. Prints medians, in seconds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import llama_cpp

THREADS = len(os.sched_getaffinity(0))
TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}  # llama.h: LLAMA_FTYPE_MOSTLY_...
QUIET = llama_cpp.llama_log_callback(lambda *_: None)  # must live as long as llama.cpp may call it
PIPELINE = os.path.join(os.path.dirname(__file__), "decode.toml")
SOURCE = "artifacts/decode/gguf/model.gguf"


def ours(program, changes, stage):
    command = [program, "run", PIPELINE, "--only", stage, "--force", stage, "--json"]
    command += [part for change in changes for part in ("--set", change)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    ended = next(event for event in map(json.loads, lines) if event.get("event") == "ended")["summary"]
    return next(row["seconds"] for row in ended["stages"] if row["name"] == stage)


def theirs(scheme):
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = THREADS, TYPES[scheme]
    with tempfile.NamedTemporaryFile(dir=".", suffix=".gguf") as to:
        began = time.perf_counter()
        if llama_cpp.llama_model_quantize(SOURCE.encode(), to.name.encode(), params):
            sys.exit(f"llama.cpp can't quantize {SOURCE}")
        return time.perf_counter() - began


def main():
    program, rounds, changes = sys.argv[1], int((sys.argv[2:] or ["3"])[0]), sys.argv[3:]
    llama_cpp.llama_log_set(QUIET, None)
    print(f"{THREADS} threads, medians of {rounds}, llama.cpp of llama-cpp-python {llama_cpp.__version__}")
    for scheme in TYPES:
        times = [(ours(program, changes, scheme), theirs(scheme)) for _ in range(rounds)]
        mine, peer = (statistics.median(column) for column in zip(*times))
        print(f"{scheme}: imp-flow {mine:.1f} s, llama.cpp {peer:.1f} s, {peer / mine:.2f}x", flush=True)


main()
