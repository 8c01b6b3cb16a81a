"""Records in LLaVA's format, and questions as the benchmark `custom` reads them."""

import json
from pathlib import Path


def record(name, image, pairs):
    """A conversation about an image: questions and answers in turn."""
    turns = []
    for question, answer in pairs:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    turns[0]["value"] = "<image>\n" + turns[0]["value"]
    return {"id": name, "image": image, "conversations": turns}


def caption(name, image, text):
    return {"id": name, "image": image, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]}


def write_image(folder, name, content):
    """`name` comes from an archive, and must not lead out of the folder."""
    if name in ("", "..") or name != Path(name).name:
        raise SystemExit(f"{name!r} is not the name of an image")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")


def write_questions(folder, asked):
    """`asked`: image, question, answer or answers, category."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "questions.jsonl", "w") as file:
        for number, (image, text, answer, category) in enumerate(asked):
            line = {"question_id": number, "image": image, "text": text, "answer": answer, "category": category}
            file.write(json.dumps(line) + "\n")
