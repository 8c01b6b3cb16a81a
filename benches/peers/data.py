"""The peer of benches/data: prepares images and conversations like LLaVA's data set, with PIL and transformers, in one process
per core.

Usage: data.py make FOLDER                        writes images (JPEG, 640 x 480, like COCO's) and train.json
       data.py run FOLDER TOKENIZER_JSON PROCESSES    prints images per second as JSON
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np
from PIL import Image

IMAGES = 400
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
state = {}


def make(folder):
    """Writes images with files as large as those of photographs: large shapes, fine noise."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    records = []
    for number in range(IMAGES):
        name = f"{number:06}.jpg"
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
        noise = random.normal(0, 12, (480, 640, 1))
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(
            folder / "images" / name, quality=90
        )
        turns = [
            {"from": "human", "value": "<image>\nWhat is in the image, and what is it doing?"},
            {"from": "gpt", "value": "A man in a red jacket rides a bicycle down a busy street in the rain. " * 2},
        ] * 3
        turns = [dict(turn, value=turn["value"].replace("<image>\n", "")) if i else turn for i, turn in enumerate(turns)]
        records.append({"id": name, "image": name, "conversations": turns})
    (folder / "train.json").write_text(json.dumps(records))


def start(folder, tokenizer):
    from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

    state["folder"] = folder
    state["tokenizer"] = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
    state["processor"] = SiglipImageProcessorPil(size={"height": 384, "width": 384})


def tokens(text):
    ids = []
    for number, part in enumerate(text.split("<image>")):
        if number:
            ids.append(-200)
        ids += state["tokenizer"](part).input_ids
    return ids


def prepare(record):
    """ChatML with its mask, computed like the reference: the whole text, then each round and its question separately."""
    turns = [turn["value"] for turn in record["conversations"]]
    head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    rounds = [
        (f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", f"{a}<|im_end|>")
        for q, a in zip(turns[::2], turns[1::2])
    ]
    ids = tokens(head + "\n".join(q + a for q, a in rounds))
    labels = list(ids)
    done = len(tokens(head))
    labels[:done] = [-100] * done
    for question, answer in rounds:
        masked = len(tokens(question))
        labels[done : done + masked] = [-100] * masked
        done += len(tokens(question + answer)) + 1
    image = Image.open(state["folder"] / "images" / record["image"]).convert("RGB")
    pixels = state["processor"](image, return_tensors="np")["pixel_values"][0]
    return len(ids) + pixels.size


def run(folder, tokenizer, processes):
    records = json.loads((folder / "train.json").read_text())
    with multiprocessing.Pool(processes, start, (folder, tokenizer)) as pool:
        # Starting processes and loading libraries are not measured.
        pool.map(prepare, records[: 4 * processes], chunksize=4)
        began = time.perf_counter()
        sizes = list(pool.imap_unordered(prepare, records, chunksize=8))
        seconds = time.perf_counter() - began
    assert sum(sizes) > len(records) * 3 * 384 * 384
    print(json.dumps({"images_per_second": len(records) / seconds}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
        print("{}")
    else:
        run(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
