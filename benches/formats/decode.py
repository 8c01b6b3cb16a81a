"""Times the decoding of models by imp-flow and, where there is a `model.gguf`, by llama.cpp, in turns.

    decode.py IMP_FLOW FOLDER...

The folders are those of `benches/formats/decode.toml`. imp-flow is asked through `imp-flow serve`: what 64 tokens more take, so that reading
the prompt does not count. Prints medians, in milliseconds per token.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request

import xllamacpp

ROUNDS, SHORT, LONG = 5, 8, 72
THREADS = len(os.sched_getaffinity(0))


class Ours:
    def __init__(self, program, folder):
        command = [program, "serve", folder, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = ""
        for line in self.process.stdout:
            said += line
            if found := re.search(r"http://\S+/v1", line):
                self.address = found[0] + "/chat/completions"
                return
        sys.exit(f"imp-flow does not serve {folder}:\n{said}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()

    def seconds(self, tokens):
        body = {"messages": [{"role": "user", "content": "What is in the image? " * 8}], "max_tokens": tokens}
        request = urllib.request.Request(self.address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        began = time.perf_counter()
        made = json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"]
        if made != tokens:
            sys.exit(f"the answer ended after {made} tokens: this model can't be timed so")
        return time.perf_counter() - began

    def per_token(self):
        return 1e3 * (self.seconds(LONG) - self.seconds(SHORT)) / (LONG - SHORT)


class LlamaCpp:
    def __init__(self, file):
        params = xllamacpp.CommonParams()
        params.model.path = file
        params.n_ctx = 1024
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
        self.server = xllamacpp.Server(params)

    def per_token(self):
        body = {"prompt": list(range(100, 164)), "temperature": 0, "n_predict": LONG, "ignore_eos": True}
        reply = self.server.handle_completions(body)
        reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        return reply["timings"]["predicted_per_token_ms"]


def main():
    program, *folders = sys.argv[1:]
    print(f"{THREADS} threads, medians of {ROUNDS}, llama.cpp of xllamacpp {xllamacpp.__version__}")
    for folder in folders:
        file = os.path.join(folder, "model.gguf")
        theirs = LlamaCpp(file) if os.path.exists(file) else None
        with Ours(program, folder) as ours:
            ours.seconds(SHORT)
            times = [(ours.per_token(), theirs.per_token() if theirs else None) for _ in range(ROUNDS)]
        mine = statistics.median(time for time, _ in times)
        peer = f", llama.cpp {statistics.median(time for _, time in times):.1f} ms" if theirs else ""
        print(f"{folder}: imp-flow {mine:.1f} ms{peer}", flush=True)


main()
