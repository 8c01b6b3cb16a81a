"""Tiny random checkpoints of CLIP, DINOv2 (without and with registers, at another resolution than in training) and SigLIP 2, with
what transformers makes of two images: pixel values, all hidden states, and the features that LLaVA takes.

Usage: vision.py FOLDER [tuned], where FOLDER is stages/model/tests/fixtures/vision in this repository. Everything is random from a
seed, and no image is stored: the tests draw the same ones. Needs torch, transformers and Pillow as in requirements.txt. With
`tuned`, the checkpoints are left as they are, and only `tuned.safetensors` is written: two AdamW steps of the last block that LLaVA's
features pass, on the cross entropy of those features.

Pillow 13 resizes images that are taller than wide in another order than before, and gives other bytes. imp-flow does it as
before: rows first. So this resizes each edge on its own, which is the same in every version.
"""

import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# Width and height: a wide and a tall one.
IMAGES = [(47, 31), (29, 52)]
# Every dimension differs, so that a transposed or swapped axis shows.
SIZES = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 6}
TEXT = {"vocab_size": 5, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
TEXT |= {"max_position_embeddings": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip():
    vision = SIZES | {"intermediate_size": 20, "image_size": 24}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=3))
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    return model, model.vision_model, CLIPImageProcessorPil(**sizes), 1


def dinov2():
    model = Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, image_size=42))
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}
    return model, model, BitImageProcessorPil(**sizes, **IMAGENET), 1


def dinov2_with_registers():
    config = Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, image_size=42, num_register_tokens=2)
    model = Dinov2WithRegistersModel(config)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}
    return model, model, BitImageProcessorPil(**sizes, **IMAGENET), 3


def siglip2():
    vision = SIZES | {"intermediate_size": 20, "image_size": 24}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=TEXT))
    # Published checkpoints of SigLIP 2 are resized bilinearly.
    return model, model.vision_model, SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=2), 0


def draw(width, height):
    """The image that the tests draw."""
    y, x, channel = numpy.meshgrid(numpy.arange(height), numpy.arange(width), numpy.arange(3), indexing="ij")
    return Image.fromarray((((x * 7 + y * 13) ^ (x * y // 5 + channel * 91)) & 255).astype(numpy.uint8))


def pixels(processor, image):
    """What the processor makes of an image that was resized in advance, first along rows."""
    size, (width, height) = processor.size, image.size
    if size.get("shortest_edge"):
        short, edge = min(width, height), size["shortest_edge"]
        to = (edge * width // short, edge * height // short)
    else:
        to = (size["width"], size["height"])
    image = image.resize((to[0], height), processor.resample).resize(to, processor.resample)
    return processor(image, do_resize=False, return_tensors="pt")["pixel_values"]


def squared(image, mean):
    """LLaVA's `expand2square`."""
    side, colour = max(image.size), tuple(int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, tuple((side - length) // 2 for length in image.size))
    return square


def randomize(model):
    """All weights, and those that start as constants, too."""
    for name, weight in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") or "lambda" in name else 0.0
        weight.data = centre + torch.randn_like(weight) * (0.3 if weight.dim() < 2 else 0.4 / weight[0].numel() ** 0.25)


def write(folder, name, make):
    torch.manual_seed(7)
    model, vision, processor, before = make()
    randomize(model)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    images = [draw(*size) for size in IMAGES]
    values = torch.cat([pixels(processor, image) for image in images])
    found = {"pixel_values": values}
    found["padded"] = torch.cat([pixels(processor, squared(image, processor.image_mean)) for image in images])
    with torch.no_grad():
        states = vision(values, output_hidden_states=True).hidden_states
        for number, state in enumerate(states):
            found[f"hidden_states.{number}"] = state
        found["features"] = states[-2][:, before:]
        # More patches than in training.
        larger = torch.randn(1, 3, 48, 48)
        options = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
        found["larger"] = larger
        found["larger_features"] = vision(larger, output_hidden_states=True, **options).hidden_states[-2][:, before:]
    save_file({name: value.contiguous() for name, value in found.items()}, f"{folder}/expected.safetensors")
    for file in ["config.json", "preprocessor_config.json"]:
        with open(f"{folder}/{file}") as text:
            content = json.load(text)
        with open(f"{folder}/{file}", "w") as text:
            json.dump(content, text, indent=1, sort_keys=True)
            text.write("\n")


def tune(folder, make):
    model, _, _, before = make()
    model = type(model).from_pretrained(folder)
    vision = getattr(model, "vision_model", model)
    # The names in files are those of older versions. The last of 3 blocks is not used.
    stored = {name: value for name, value in load_file(f"{folder}/model.safetensors").items() if "layers.1." in name or "layer.1." in name}
    stored = {name: value for name, value in stored.items() if "text_model" not in name}
    weights = list(vision.parameters())
    trains = {name: next(weight for weight in weights if torch.equal(weight, value)) for name, value in stored.items()}
    model.requires_grad_(False)
    for weight in trains.values():
        weight.requires_grad_(True)
    norms = [weight for name, weight in trains.items() if "norm" in name or name.endswith("bias")]
    others = [weight for name, weight in trains.items() if not ("norm" in name or name.endswith("bias"))]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    values = load_file(f"{folder}/expected.safetensors")["pixel_values"]
    found, losses = {}, []
    for step in range(2):
        optimizer.zero_grad()
        features = vision(values, output_hidden_states=True).hidden_states[-2][:, before:].flatten(0, 1)
        targets = torch.arange(len(features)) * 5 % features.shape[1]
        loss = F.cross_entropy(features, targets)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            found |= {f"grad.{name}": weight.grad.clone() for name, weight in trains.items()}
        optimizer.step()
    found |= {f"after.{name}": weight.detach().clone() for name, weight in trains.items()}
    found["loss"] = torch.stack(losses)
    save_file({name: value.contiguous() for name, value in found.items()}, f"{folder}/tuned.safetensors")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["tuned"]):
        sys.exit(__doc__)
    for make in [clip, dinov2, dinov2_with_registers, siglip2]:
        folder = f"{sys.argv[1]}/{make.__name__}"
        if len(sys.argv) == 2:
            write(folder, make.__name__, make)
        tune(folder, make)
    print(f"made with transformers {transformers.__version__}, torch {torch.__version__}")
