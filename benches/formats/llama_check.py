"""Asks llama.cpp's server about images and compares what it says with the answers of imp-flow's `eval`.

    llama_check.py GGUF_FOLDER ANSWERS_FOLDER DATA_FOLDER [LIMIT]

GGUF_FOLDER is a quantize with `format = "gguf"`, the others as in transformers_check.py. Images go before or after the question, as
clients do it. Ends with 1 if more than one answer differs.
"""

import base64
import json
import os
import sys

import xllamacpp

folder, answers, data = sys.argv[1:4]
limit = int(sys.argv[4]) if len(sys.argv) > 4 else None

questions = json.load(open(os.path.join(data, "eval/vqav2/questions.json")))["questions"]
images = {question["question_id"]: question["image_id"] for question in questions}
rows = [json.loads(line) for line in open(os.path.join(answers, "answers.jsonl"))][:limit]

params = xllamacpp.CommonParams()
params.model.path = os.path.join(folder, "model.gguf")
params.mmproj.path = os.path.join(folder, "mmproj.gguf")
params.n_ctx = 1024
params.n_parallel = 1
params.warmup = False
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)

different = []
for number, row in enumerate(rows):
    path = os.path.join(data, "eval/images/%012d.png" % images[row["question_id"]])
    url = "data:image/png;base64," + base64.b64encode(open(path, "rb").read()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row["prompt"]}]
    messages = [{"role": "user", "content": content if number % 2 else content[::-1]}]
    reply = server.handle_chat_completions({"messages": messages, "temperature": 0, "max_tokens": 64})
    reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
    said = reply["choices"][0]["message"]["content"].strip()
    if said != row["text"]:
        different.append((row["question_id"], said, row["text"]))

print(f"llama.cpp (xllamacpp {xllamacpp.__version__}) on {folder}: {len(rows) - len(different)} of {len(rows)} answers equal")
for question, theirs, ours in different[:5]:
    print(f"  question {question}: llama.cpp {theirs!r}, imp-flow {ours!r}")
sys.exit(len(different) > 1)
