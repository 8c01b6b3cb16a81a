"""easy-VQA: drawn shapes of one colour each, with questions about shape and colour."""

import json
import random
from collections import defaultdict

from records import caption, record, write_image, write_questions, write_records

# Questions in a conversation about a training image. Their order is random: after "which colour? red" the image is not
# needed to say whether something in it is red, so that question must come first as often as not.
QUESTIONS = 5
TEST_IMAGES = 150
COLOURS = {"red", "green", "gray", "teal", "black", "yellow", "brown", "blue"}
SHAPES = {"circle", "rectangle", "triangle"}


def questions(archive, split):
    """The (question, answer) pairs of each image, in the file's order."""
    by_image = defaultdict(list)
    for text, answer, image in json.loads(archive.read(f"easy_vqa/data/{split}/questions.json")):
        by_image[image].append((text, answer))
    return dict(sorted(by_image.items()))


def described(pairs):
    """What an image shows according to its questions, which don't always tell."""
    answers = {answer for _, answer in pairs}
    colour, shape = answers & COLOURS, answers & SHAPES
    return f"a {colour.pop()} {shape.pop()}." if len(colour) == len(shape) == 1 else None


def category(answer):
    return "colour" if answer in COLOURS else "shape" if answer in SHAPES else "yes or no"


def write(archive, folder):
    dice = random.Random(0)
    train, captions = [], []
    for image, pairs in questions(archive, "train").items():
        name = f"train-{image}.png"
        train.append(record(f"shape-{image}", name, dice.sample(pairs, min(QUESTIONS, len(pairs)))))
        text = described(pairs)
        captions += [caption(f"shape-{image}", name, text)] if text else []
    write_records(folder / "captions.json", captions)
    write_records(folder / "instruct.json", train)
    test = dict(list(questions(archive, "test").items())[:TEST_IMAGES])
    write_questions(folder, [(f"test-{image}.png", *pair, category(pair[1])) for image, pairs in test.items() for pair in pairs])
    for split, numbers in ("train", questions(archive, "train")), ("test", test):
        for number in numbers:
            image = archive.read(f"easy_vqa/data/{split}/images/{number}.png")
            write_image(folder / "images", f"{split}-{number}.png", image)
