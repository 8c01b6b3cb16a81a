"""Loads merged Imps with plain transformers and compares what they say with the answers of imp-flow's `eval`.

    transformers_check.py LLAVA_FOLDER ANSWERS_FOLDER DATA_FOLDER [LIMIT]

LLAVA_FOLDER is a merge with `format = "llava-hf"`, ANSWERS_FOLDER an eval of the same model with `benchmark = "vqav2"`, DATA_FOLDER
the artifact of `builtin:shapes`. Ends with 1 if anything differs.
"""

import json
import os
import sys

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, answers, data = sys.argv[1:4]
limit = int(sys.argv[4]) if len(sys.argv) > 4 else None

torch.set_num_threads(1)
questions = json.load(open(os.path.join(data, "eval/vqav2/questions.json")))["questions"]
images = {question["question_id"]: question["image_id"] for question in questions}
rows = [json.loads(line) for line in open(os.path.join(answers, "answers.jsonl"))][:limit]

model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
model.eval()
# Phi's head has no bias in current versions; the one in the file is zero.
stray = {key: sorted(names) for key, names in info.items() if names}
stray = {key: [name for name in names if not name.endswith("lm_head.bias")] for key, names in stray.items()}
assert not any(stray.values()), stray
# The exact resizing of Imp's preprocessing; transformers' default differs by up to two steps of 255.
processor = AutoProcessor.from_pretrained(folder, backend="pil")

different = []
for row in rows:
    content = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = Image.open(os.path.join(data, "eval/images/%012d.png" % images[row["question_id"]]))
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    said = processor.decode(ids, skip_special_tokens=True).strip()
    if said != row["text"]:
        different.append((row["question_id"], said, row["text"]))

kinds = len({row["text"] for row in rows})
print(
    f"transformers {transformers.__version__}: {type(model).__name__} of {model.config.text_config.model_type}, "
    f"{len(rows) - len(different)} of {len(rows)} answers equal ({kinds} different answers)"
)
for question, theirs, ours in different[:10]:
    print(f"  question {question}: transformers {theirs!r}, imp-flow {ours!r}")
sys.exit(bool(different))
