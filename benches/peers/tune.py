"""Makes stages/model/tests/fixtures/tune: steps of peft's and transformers' own code on the tiny Phi of the fixtures.

Usage: tune.py (from anywhere). For `rslora`, `loraplus` and `dora` it writes the adapter as peft saves it before the first step, and in
`expected.safetensors` the losses, the first gradients and the weights after two AdamW steps on one batch; of `dora` also logits
and a merged weight. For `neftune` it writes the loss and the gradients of
the adapter `rslora` with transformers' hook on the token embedding; the hook draws its numbers from imp-flow's generator,
written out below, so that everything but the generator is transformers'.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.neftune import activate_neftune

FIXTURES = Path(__file__).resolve().parents[2] / "stages/model/tests/fixtures"
PHI, TUNE = FIXTURES / "phi", FIXTURES / "tune"
RANK, ALPHA, TARGETS = 3, 8, ["q_proj", "fc2", "lm_head"]
RATE, DECAY, RATIO = 1e-2, 0.1, 4.0
IMAGE, PATCHES = -200, 16
PREFIX = "base_model.model."


def base():
    return AutoModelForCausalLM.from_pretrained(PHI / "base_llm", dtype=torch.float32, attn_implementation="eager")


def adapted(**options):
    """A model with a random adapter, B and magnitudes included, in training."""
    torch.manual_seed(7)
    model = get_peft_model(base(), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn_like(weight))
            if "magnitude" in name:
                weight.mul_(1 + 0.1 * torch.randn_like(weight))
    return model.train()


def loss_of(model, embeds, mask, positions, labels):
    logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def batch():
    expected = load_file(PHI / "expected/mm_batch.safetensors")
    embeds, labels = expected["inputs_embeds"], expected["labels_spliced"]
    mask = expected["attention_mask"].long()
    return embeds, mask, torch.arange(embeds.shape[1]).expand(embeds.shape[:2]), labels


def our_name(name):
    return name.removeprefix(PREFIX).replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")


def trained(model, suffix):
    found = {our_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}
    value = (lambda weight: weight.grad) if suffix == "grad" else (lambda weight: weight)
    return {f"{suffix}.{name}": value(weight).detach().clone() for name, weight in found.items()}


def steps(name, model, optimizer):
    folder = TUNE / name
    # By default peft also saves the output layer itself if it is adapted: one of the fixtures has it.
    model.save_pretrained(folder, save_embedding_layers="auto" if name == "loraplus" else False)
    (folder / "README.md").unlink(missing_ok=True)
    tensors, losses = {}, []
    for step in range(2):
        optimizer.zero_grad()
        loss = loss_of(model, *batch())
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            tensors |= trained(model, "grad")
        optimizer.step()
    tensors |= trained(model, "after")
    tensors["loss"] = torch.stack(losses)
    if name == "dora":
        with torch.no_grad():
            tensors["adapted_logits"] = model.eval()(inputs_embeds=batch()[0][:1]).logits[0, :4].clone()
            merged = model.merge_and_unload()
            layer = "model.layers.0.self_attn.q_proj"
            tensors[f"merged.{layer}"] = merged.get_submodule(layer).weight.clone()
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, folder / "expected.safetensors")


def slim(folder):
    """Leaves in `adapter_config.json` what is not a default that says nothing."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "../../phi/base_llm"
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def mix(number):
    """SplitMix64."""
    number = (number + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    number = (number ^ number >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return number ^ number >> 31


def noise(seed, row, width):
    """imp-flow's numbers in [-1, 1) for a row of embeddings."""
    key = mix(seed ^ mix(row))
    first, second = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    x = np.arange(width, dtype=np.uint32) * np.uint32(0x9E3779B9) ^ first
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15) ^ second) * np.uint32(0x846CA68B)
    x = x ^ x >> np.uint32(16)
    return torch.from_numpy((x >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1))


def fnv1a(text):
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = (key ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return key


def neftune(alpha=5.0, step_seed=11):
    """A whole step with transformers' hook, on the first sample of the batch, which has an image."""
    model = PeftModel.from_pretrained(base(), TUNE / "rslora", is_trainable=True).train()
    single = load_file(PHI / "expected/mm_single.safetensors")
    embeds, labels = single["inputs_embeds"], single["labels_spliced"]
    ids, is_image = [], []
    for token in single["input_ids"].flatten().tolist():
        count = PATCHES if token == IMAGE else 1
        ids += [0 if token == IMAGE else token] * count
        is_image += [token == IMAGE] * count
    length = embeds.shape[1]
    assert len(ids) == length
    activate_neftune(model, alpha)
    seed = step_seed ^ fnv1a("neftune")
    with_bound = lambda tensor, low, high: tensor.copy_(
        high * torch.stack([noise(seed, row, tensor.shape[2]) for row in range(tensor.shape[1])])[None]
    )
    original, torch.Tensor.uniform_ = torch.Tensor.uniform_, with_bound
    try:
        noisy = model.get_input_embeddings()(torch.tensor([ids]))
    finally:
        torch.Tensor.uniform_ = original
    # As transformers' Llava: features take the place of what was embedded for them.
    noisy = torch.where(torch.tensor(is_image)[None, :, None], embeds, noisy)
    loss = loss_of(model, noisy, torch.ones(1, length), torch.arange(length)[None], labels)
    loss.backward()
    tensors = {"loss": loss.detach()[None], "embedded": noisy.detach()[0], "alpha": torch.tensor([alpha])}
    save_file(tensors | trained(model, "grad"), TUNE / "neftune.safetensors")


def main():
    np.seterr(over="ignore")
    torch.set_num_threads(1)
    TUNE.mkdir(exist_ok=True)
    adamw = dict(lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    model = adapted(use_rslora=True)
    steps("rslora", model, torch.optim.AdamW(model.parameters(), weight_decay=DECAY, **adamw))
    for name, options in (("loraplus", {}), ("dora", {"use_dora": True})):
        model = adapted(**options)
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY, **adamw
        )
        steps(name, model, optimizer)
    for name in ("rslora", "loraplus", "dora"):
        slim(TUNE / name)
    neftune()


main()
