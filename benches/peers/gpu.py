"""PyTorch's side of `benches/gpu`: the cases of benches/gpu/cases.rs with transformers and peft, on random weights.

    gpu.py CASE VARIANT [--tiny]

CASE is lora, features, decode or prefill; VARIANT is eager, compiled (torch.compile), or bf16 (lora with adapters in bf16).
Speaks the lines of JSON that benches/gpu/worker.rs describes: ready, then a time for each line of input, then the peak.
"""

import json
import sys
import time


def say(**line):
    print(json.dumps(line), flush=True)


def skip(reason):
    say(skipped=str(reason)[:300])
    sys.exit(0)


try:
    import torch
    from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel
except ImportError as error:
    skip(error)

CASE, VARIANT, TINY = sys.argv[1], sys.argv[2], "--tiny" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and not TINY:
    skip("PyTorch finds no GPU")

# The sizes of benches/gpu/sizes.rs.
PHI = dict(vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32)
ENCODER = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384)
SEQUENCES, TEXT, RANK, IMAGES, PROMPTS, QUESTION, ANSWER = 4, 256, 256, 16, 16, 64, 64
if TINY:
    PHI = dict(vocab_size=200, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
    ENCODER = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=28)
    SEQUENCES, TEXT, RANK, IMAGES, PROMPTS, QUESTION, ANSWER = 2, 8, 4, 2, 2, 5, 3
PATCHES = (ENCODER["image_size"] // 14) ** 2
TARGETS = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]


def language():
    config = PhiConfig(**PHI, partial_rotary_factor=0.4, attn_implementation="sdpa")
    with torch.device(DEVICE):
        return PhiForCausalLM(config).to(torch.bfloat16)


def embedded(model, sequences, text):
    """Projected patches and embedded tokens: the encoder and the splice are not part of the case."""
    ids = torch.randint(0, PHI["vocab_size"], (sequences, text), device=DEVICE)
    patches = torch.randn(sequences, PATCHES, PHI["hidden_size"], device=DEVICE, dtype=torch.bfloat16)
    return torch.cat([patches, model.get_input_embeddings()(ids)], 1), ids


def lora():
    from peft import LoraConfig, get_peft_model

    model = language()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    settings = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.05, target_modules=TARGETS)
    model = get_peft_model(model, settings, autocast_adapter_dtype=VARIANT != "bf16")
    model.train()
    width = PHI["hidden_size"]
    projector = torch.nn.Sequential(
        torch.nn.Linear(ENCODER["hidden_size"], width), torch.nn.GELU(), torch.nn.Linear(width, width)
    ).to(DEVICE)
    features = torch.randn(SEQUENCES, PATCHES, ENCODER["hidden_size"], device=DEVICE)
    ids = torch.randint(0, PHI["vocab_size"], (SEQUENCES, TEXT), device=DEVICE)
    labels = torch.full((SEQUENCES, PATCHES + TEXT), -100, device=DEVICE)
    labels[:, -(TEXT // 2):] = ids[:, -(TEXT // 2):]
    parameters = [p for p in [*model.parameters(), *projector.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=DEVICE == "cuda")
    run = torch.compile(model) if VARIANT == "compiled" else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16):
            words = model.get_input_embeddings()(ids)
            inputs = torch.cat([projector(features).to(words.dtype), words], 1)
            loss = run(inputs_embeds=inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert torch.isfinite(loss)

    return step


def features():
    config = SiglipVisionConfig(**ENCODER, patch_size=14, attn_implementation="sdpa")
    with torch.device(DEVICE):
        model = SiglipVisionModel(config).to(torch.bfloat16).eval()
    # The features are the input of the last block.
    tower = getattr(model, "vision_model", model)  # transformers 5 has one module less.
    del tower.encoder.layers[-1]
    run = torch.compile(model) if VARIANT == "compiled" else model
    size = ENCODER["image_size"]
    images = torch.randn(IMAGES, 3, size, size)

    def step():
        with torch.inference_mode():
            run(images.to(DEVICE, torch.bfloat16)).last_hidden_state.sum().item()

    return step


def answers(length):
    model = language().eval()
    if VARIANT == "compiled":
        model.forward = torch.compile(model.forward)
    inputs, _ = embedded(model, PROMPTS, QUESTION)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=DEVICE)

    def step():
        with torch.inference_mode():
            # Random weights may end an answer: the length is fixed.
            found = model.generate(
                inputs_embeds=inputs, attention_mask=mask, do_sample=False, max_new_tokens=length, min_new_tokens=length
            )
        assert found.shape[1] == length

    return step


CASES = {"lora": lora, "features": features, "decode": lambda: answers(ANSWER), "prefill": lambda: answers(1)}


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def main():
    began = time.time()
    torch.manual_seed(1)
    step = CASES[CASE]()
    for _ in range(2):
        step()
    wait()
    say(ready=time.time() - began)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        wait()
        say(ms=(time.perf_counter() - started) * 1e3)
    say(peak_bytes=torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0)


try:
    main()
except Exception as error:  # Out of memory, or a version of a library that differs: the reason becomes the result.
    skip(f"{type(error).__name__}: {error}")
