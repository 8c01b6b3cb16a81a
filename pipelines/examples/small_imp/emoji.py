"""Emoji with their names and categories. Two things are held out: emoji that training never shows, to be sorted into categories,
and skin tones of emoji that training shows in another tone, to be named."""

import json
import random

from records import caption, record, write_image, write_questions, write_records

CATEGORIES = {
    "Smileys & Emotion": "smiley",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
UNSEEN, TONES = 150, 150
NAME = "What does this emoji show?"
KIND = "Which category is this emoji in?"


def is_it(category):
    return f"Is this emoji in the category {category}?"


def yes_or_no(category, dice):
    asked = category if dice.random() < 0.5 else dice.choice([other for other in CATEGORIES.values() if other != category])
    return is_it(asked), "yes" if asked == category else "no"


def conversation(name, category, dice):
    """The name always, as each has to be learned by heart, and one question about the category, in a random order."""
    other = (KIND, category) if dice.random() < 0.5 else yes_or_no(category, dice)
    return dice.sample([(NAME, name), other], 2)


def write(archive, folder):
    dice = random.Random(0)
    listed = json.load(archive.extractfile("package/emoji.json"))
    known = [
        (one["name"].lower(), CATEGORIES[one["category"]], one["image"], [tone["image"] for tone in one.get("skin_variations", {}).values()])
        for one in sorted(listed, key=lambda one: one["sort_order"])
        if one["has_img_google"] and one["name"] and one["category"] in CATEGORIES
    ]
    dice.shuffle(known)
    toned = [one for one in known if len(one[3]) > 1]
    unseen = [one for one in known if not one[3]][:UNSEEN]
    hidden = {image for *_, image, _ in unseen}
    train, captions, asked, images = [], [], [], []
    for name, category, image, tones in known:
        if image in hidden:
            continue
        for image in [image, *tones[:1]]:
            train.append(record(image, image, conversation(name, category, dice)))
            captions.append(caption(image, image, f"{name}, {category}."))
            images.append(image)
    for _, category, image, _ in unseen:
        asked.append((image, KIND, category, "category of an unseen emoji"))
        asked.append((image, *yes_or_no(category, dice), "yes or no about an unseen emoji"))
        images.append(image)
    for name, _, _, tones in toned[:TONES]:
        asked.append((tones[1], NAME, name, "name in an unseen skin tone"))
        images.append(tones[1])
    write_records(folder / "captions.json", captions)
    write_records(folder / "instruct.json", train)
    write_questions(folder, asked)
    for image in images:
        write_image(folder / "images", image, archive.extractfile(f"package/img/google/64/{image}").read())
