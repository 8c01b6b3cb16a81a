"""PyTorch's side of `benches/gpu`: the cases of benches/gpu/cases.rs with transformers and peft, on random weights.

    gpu.py CASE VARIANT [--tiny]

CASE is lora, features, decode or prefill; VARIANT is eager, compiled, or bf16 (lora with adapters in bf16). Compiled is
torch.compile of each block, since a model as a whole takes minutes; decode has transformers' static cache instead, with which
`generate` compiles a step and captures it as a CUDA graph. Attention is SDPA, without a mask where all prompts are equally
long, so that PyTorch can take its flash kernel. Logits are computed at labelled positions only, as on our side. Prefill keeps no
keys and values here, as each block would be compiled anew for its place in their cache; our side keeps them, and projects the
features of the images (0.35 % of its operations), which here are given.

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
    from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel, StaticCache
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
    # Random weights must not end an answer.
    config = PhiConfig(**PHI, partial_rotary_factor=0.4, attn_implementation="sdpa", eos_token_id=None)
    with torch.device(DEVICE):
        return PhiForCausalLM(config).to(torch.bfloat16)


def compiled(blocks):
    if VARIANT == "compiled":
        # One compilation serves all blocks, unless something in them differs.
        torch._dynamo.config.recompile_limit = 64
        for block in blocks:
            block.compile()


def embedded(model, sequences, text):
    """Projected patches and embedded tokens: the encoder and the splice are not part of the case."""
    ids = torch.randint(0, PHI["vocab_size"], (sequences, text), device=DEVICE)
    patches = torch.randn(sequences, PATCHES, PHI["hidden_size"], device=DEVICE, dtype=torch.bfloat16)
    return torch.cat([patches, model.get_input_embeddings()(ids)], 1).detach()


def lora():
    from peft import LoraConfig, get_peft_model

    model = language()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    settings = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.05, target_modules=TARGETS)
    # Drawing 400 million weights takes long on a CPU.
    with torch.device(DEVICE):
        model = get_peft_model(model, settings, autocast_adapter_dtype=VARIANT != "bf16")
    model.train()
    width = PHI["hidden_size"]
    projector = torch.nn.Sequential(
        torch.nn.Linear(ENCODER["hidden_size"], width), torch.nn.GELU(), torch.nn.Linear(width, width)
    ).to(DEVICE)
    features = torch.randn(SEQUENCES, PATCHES, ENCODER["hidden_size"], device=DEVICE)
    ids = torch.randint(0, PHI["vocab_size"], (SEQUENCES, TEXT), device=DEVICE)
    labelled = TEXT // 2
    compiled(model.get_base_model().model.layers)
    parameters = [p for p in [*model.parameters(), *projector.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=DEVICE == "cuda")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16):
            words = model.get_input_embeddings()(ids)
            inputs = torch.cat([projector(features).to(words.dtype), words], 1)
            # The positions before the labelled tokens, and the last, which predicts nothing.
            logits = model(inputs_embeds=inputs, use_cache=False, logits_to_keep=labelled + 1).logits
        targets = ids[:, -labelled:].flatten()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert torch.isfinite(loss)

    return step


def features():
    config = SiglipVisionConfig(**ENCODER, patch_size=14, attn_implementation="sdpa")
    # The last norm and the head that pools come after the features.
    config.vision_use_head = False
    with torch.device(DEVICE):
        model = SiglipVisionModel(config).to(torch.bfloat16).eval()
    # The features are the input of the last block.
    tower = getattr(model, "vision_model", model)  # transformers 5 has one module less.
    del tower.encoder.layers[-1]
    tower.post_layernorm = torch.nn.Identity()
    compiled(tower.encoder.layers)
    size = ENCODER["image_size"]
    images = torch.randn(IMAGES, 3, size, size)
    if DEVICE == "cuda":
        images = images.pin_memory()

    def step():
        with torch.inference_mode():
            model(images.to(DEVICE, non_blocking=True).to(torch.bfloat16)).last_hidden_state.sum().item()

    return step


def decode():
    model = language().eval()
    options = dict(do_sample=False, max_new_tokens=ANSWER, pad_token_id=0)
    inputs = embedded(model, PROMPTS, QUESTION)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=DEVICE)
    cache = None
    if VARIANT == "compiled":
        # One for all repetitions: in another one a graph would be captured again.
        cache = StaticCache(config=model.config, max_cache_len=PATCHES + QUESTION + ANSWER)
        options["past_key_values"] = cache

    def step():
        with torch.inference_mode():
            if cache is not None:
                cache.reset()
            found = model.generate(inputs_embeds=inputs, attention_mask=mask, **options)
        assert found.shape[1] == ANSWER

    return step


def prefill():
    model = language().eval()
    compiled(model.model.layers)
    inputs = embedded(model, PROMPTS, QUESTION)

    def step():
        with torch.inference_mode():
            logits = model(inputs_embeds=inputs, use_cache=False, logits_to_keep=1).logits
            logits.float().argmax(-1).tolist()

    return step


CASES = {"lora": lora, "features": features, "decode": decode, "prefill": prefill}
# More where the first repetitions compile, record and check.
WARM_UPS = 4 if (CASE, VARIANT) == ("decode", "compiled") else 2


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def main():
    began = time.time()
    torch.manual_seed(1)
    step = CASES[CASE]()
    if DEVICE == "cuda":
        # Not the peak of drawing weights in f32.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UPS):
        step()
    wait()
    say(ready=time.time() - began)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        wait()
        say(ms=(time.perf_counter() - started) * 1e3)
    say(peak_bytes=torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None)


try:
    main()
except Exception as error:  # Out of memory, or a version of a library that differs: the reason becomes the result.
    skip(f"{type(error).__name__}: {error}")
