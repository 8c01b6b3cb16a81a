"""Whether `merge` gives the bits of peft's `merge_and_unload`: python peft_check.py IMP_FLOW LLM VISION.

LLM and VISION are folders of a language model and a SigLIP, such as the artifacts of `builtin:tiny-phi` and `builtin:tiny-siglip`. A random
adapter of each rank is left as LLaVA's scripts leave one, in files of `torch.save`, and merged by both. In f32 and in f16.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import peft
import torch
import transformers
from safetensors.torch import load_file

PIPELINE = """
name = "peft"
[stages.scripts]
kind = "download"
source = "scripts"
[stages.llm]
kind = "download"
source = "llm"
[stages.vision]
kind = "download"
source = "{vision}"
[stages.merged]
kind = "merge"
model = "scripts"
llm = "llm"
vision = "vision"
dtype = "{dtype}"
"""


def leave_scripts(work, model, hidden, width):
    """What LLaVA's finetuning script writes at its end."""
    scripts = work / "scripts"
    scripts.mkdir()
    torch.save(peft.get_peft_model_state_dict(model), scripts / "adapter_model.bin")
    model.peft_config["default"].save_pretrained(scripts)
    shapes = {"0.weight": (hidden, width), "0.bias": (hidden,), "2.weight": (hidden, hidden), "2.bias": (hidden,)}
    prefix = "base_model.model.model.mm_projector"
    projector = {f"{prefix}.{name}": torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    torch.save(projector, scripts / "non_lora_trainables.bin")
    config = {"model_type": "imp", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (scripts / "config.json").write_text(json.dumps(config))


def compare(binary, llm, vision, rank, dtype):
    work = pathlib.Path(tempfile.mkdtemp())
    model = transformers.AutoModelForCausalLM.from_pretrained(llm, dtype=getattr(torch, dtype))
    base = work / "llm"
    base.mkdir()
    for file in llm.iterdir():
        if not file.name.endswith(".safetensors"):
            (base / file.name).write_bytes(file.read_bytes())
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    whole = ["lm_head"]
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", modules_to_save=whole)
    adapted = peft.get_peft_model(model, settings)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.05)
    width = json.loads((vision / "config.json").read_text())["vision_config"]["hidden_size"]
    leave_scripts(work, adapted, model.config.hidden_size, width)
    short = {"float32": "f32", "float16": "f16"}[dtype]
    (work / "p.toml").write_text(PIPELINE.format(vision=vision.resolve(), dtype=short))
    subprocess.run([binary, "run", "p.toml"], cwd=work, check=True, capture_output=True)
    ours = load_file(work / "artifacts/peft/merged/model.safetensors")
    theirs = adapted.merge_and_unload().state_dict()
    differ, worst = 0, 0.0
    for name, value in theirs.items():
        off = (ours[name].float() - value.float()).abs()
        differ += int((off != 0).sum())
        worst = max(worst, float(off.max()))
    count = sum(value.numel() for value in theirs.values())
    print(f"rank {rank:4} {short}: {differ} of {count} values differ, by at most {worst:.2e}", flush=True)


def main():
    binary, llm, vision = (pathlib.Path(path).resolve() for path in sys.argv[1:])
    torch.manual_seed(3)
    for dtype in ["float32", "float16"]:
        for rank in [4, 16, 64, 256]:
            compare(binary, llm, vision, rank, dtype)


if __name__ == "__main__":
    main()
