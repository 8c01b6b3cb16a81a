"""Scaled rotary position embeddings: the frequencies and the attention factor that transformers computes for each `rope_scaling`,
and logits of tiny random models with them, for a sequence within the length of the training and a longer one.

Usage: rope.py FOLDER, which is stages/model/tests/fixtures/rope in this repository. Everything is random from a seed. Needs torch
and transformers as in requirements.txt.
"""

import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = {"vocab_size": 19, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "rope_theta": 1000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT = [1.0, 1.1, 1.25, 1.5, 1.75, 2.0]
LONG = [1.0, 1.5, 3.0, 6.0, 12.0, 24.0]
# Name: the positions of the model, and its `rope_scaling`.
CASES = {
    "linear": (32, {"type": "linear", "factor": 4.0}),
    "dynamic": (16, {"type": "dynamic", "factor": 2.0}),
    "llama3": (64, LLAMA3 | {"original_max_position_embeddings": 24}),
    "yarn": (2048, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
    "yarn_mscale": (
        2048,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 1.0}
        | {"mscale_all_dim": 0.5, "beta_fast": 8, "beta_slow": 2, "truncate": False},
    ),
    "longrope": (64, {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}),
}
LENGTHS = [12, 40]


def config_of(name):
    positions, scaling = CASES[name]
    if name == "longrope":
        more = {"original_max_position_embeddings": 16, "sliding_window": None}
        return Phi3Config(**SIZES, max_position_embeddings=positions, rope_scaling=dict(scaling), **more)
    return LlamaConfig(**SIZES, max_position_embeddings=positions, rope_scaling=dict(scaling))


def as_published(name):
    """A `config.json` with the keys that published models have, which transformers writes in another way since its version 5."""
    positions, scaling = CASES[name]
    config = SIZES | {"model_type": "llama", "max_position_embeddings": positions, "rope_scaling": scaling}
    if name == "longrope":
        config |= {"model_type": "phi3", "original_max_position_embeddings": 16}
    return config


def weights(kind):
    torch.manual_seed(3)
    model = kind(config_of("longrope" if kind is Phi3ForCausalLM else "linear"))
    for name, weight in model.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        weight.data = centre + torch.randn_like(weight) * (0.3 if weight.dim() < 2 else 0.5)
    return model.state_dict()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = sys.argv[1]
    states = {kind: weights(kind) for kind in (LlamaForCausalLM, Phi3ForCausalLM)}
    ids = torch.tensor([[(i * i * 7 + 3) % 19 for i in range(max(LENGTHS))]])
    found = {"ids": ids}
    for name in CASES:
        config = config_of(name)
        kind = Phi3ForCausalLM if name == "longrope" else LlamaForCausalLM
        for length in LENGTHS:
            frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, seq_len=length)
            found[f"{name}.frequencies.{length}"] = frequencies
            found[f"{name}.factor.{length}"] = torch.tensor([factor])
            # A new model for each, since some keep what they computed for the longest sequence.
            model = kind(config)
            model.load_state_dict(states[kind])
            with torch.no_grad():
                found[f"{name}.logits.{length}"] = model.eval()(ids[:, :length], use_cache=False).logits
    os.makedirs(folder, exist_ok=True)
    save_file({name: value.contiguous() for name, value in found.items()}, f"{folder}/expected.safetensors")
    for kind, state in states.items():
        save_file({name: value.contiguous() for name, value in state.items()}, f"{folder}/{kind.config_class.model_type}.safetensors")
    with open(f"{folder}/configs.json", "w") as text:
        json.dump({name: as_published(name) for name in CASES}, text, indent=1)
        text.write("\n")
    print(f"made with transformers {transformers.__version__}, torch {torch.__version__}")
