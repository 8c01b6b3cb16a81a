"""The peer of benches/model: the same work in PyTorch eager with SDPA, transformers and peft on the CPU, in f32 or, as
CASE-bf16, wholly in bf16.

Usage: model.py CASE THREADS. Prints "ready", then answers every line on standard input with the milliseconds of one
repetition, and the end of the input with the peak memory in MB, minus that of the process before its first tensor.
"""

import os
import resource
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def phi(vocab, hidden, layers, heads, rotary):
    return PhiForCausalLM(
        PhiConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            partial_rotary_factor=rotary,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )


def block(dtype, dropout=0.05):
    """Forward and backward pass of one frozen Phi-2 block with LoRA of rank 256; 512 tokens."""
    model = phi(64, 2560, 1, 32, 0.4)
    names = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    lora = LoraConfig(r=256, lora_alpha=256, lora_dropout=dropout, target_modules=names)
    # The adapters in bf16 too: in f32, as by default, they take longer.
    model = get_peft_model(model.to(dtype), lora, autocast_adapter_dtype=False).train()
    decoder = model.base_model.model.model
    x = torch.randn(1, 512, 2560, dtype=dtype, requires_grad=True)

    def run():
        decoder(inputs_embeds=x).last_hidden_state.sum().backward()
        model.zero_grad(set_to_none=True)
        x.grad = None

    return run


def train(dtype):
    """A complete step of full finetuning of a 60M Imp: 4 sequences of 64 tokens and 196 patches, AdamW."""
    llm = phi(32000, 512, 8, 8, 0.5).to(dtype).train()
    vision = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=224,
            patch_size=16,
            attn_implementation="sdpa",
            vision_use_head=False,
        )
    ).eval().to(dtype)
    projector = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 512)).to(dtype)
    parameters = [*llm.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    images = torch.randn(4, 3, 224, 224, dtype=dtype)
    ids = torch.randint(0, 32000, (4, 64))
    labels = torch.full((4, 64 + 196), -100)
    labels[:, 196 + 32 :] = ids[:, 32:]

    def run():
        with torch.no_grad():
            features = vision(pixel_values=images, output_hidden_states=True).hidden_states[-2]
        embedded = torch.cat([projector(features), llm.get_input_embeddings()(ids)], 1)
        llm(inputs_embeds=embedded, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def generate(dtype, prompt, new):
    """Greedy tokens after a prompt, with a Llama of SmolLM2-135M's sizes."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    ).eval().to(dtype)
    ids = torch.randint(0, 49152, (1, prompt))
    mask = torch.ones_like(ids)

    def run():
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)

    return run


def decode(dtype):
    """128 tokens after a prompt of 64."""
    return generate(dtype, 64, 128)


def prefill(dtype):
    """A prompt of 512 tokens, up to the first token after it."""
    return generate(dtype, 512, 1)


def load(_):
    """Opening a Phi-2 of 2.8G weights in f16, from files in the page cache."""
    return lambda: PhiForCausalLM.from_pretrained("target/bench-models/open/llm", dtype=torch.float16)


def main():
    case, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    empty = memory()
    case, _, bf16 = case.partition("-")
    dtype = torch.bfloat16 if bf16 else torch.float32
    cases = {"block": block, "train": train, "decode": decode, "prefill": prefill, "open": load}
    cases["nodrop"] = lambda dtype: block(dtype, dropout=0.0)
    run = cases[case](dtype)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print((time.perf_counter() - began) * 1e3, flush=True)
    print(memory() - empty, flush=True)


main()
