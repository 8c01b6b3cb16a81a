"""The peer of benches/stages: LLaVA's two stages in PyTorch, transformers and peft on the CPU, as one process.

Usage: finetune.py STAGE FOLDER THREADS PRECISION, where STAGE is `pretrain` or `finetune`, FOLDER contains the artifacts of
benches/stages/pipeline.toml, and PRECISION is `f32` or `bf16`, in which all is computed. Prints the training loop's examples per second as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoModelForCausalLM, SiglipVisionModel, get_cosine_schedule_with_warmup

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
IGNORE = -100


class Records(Dataset):
    """A LLaVA-format file: token ids around the image, labels and pixels, computed on demand."""

    def __init__(self, data, annotations, tokenizer, size):
        self.records = json.loads((data / annotations).read_text())
        self.images, self.tokenizer, self.size = data / "images", tokenizer, size

    def __len__(self):
        return len(self.records)

    def lengths(self):
        return [sum(len(turn["value"].split()) for turn in record["conversations"]) for record in self.records]

    def __getitem__(self, number):
        record = self.records[number]
        image = Image.open(self.images / record["image"]).convert("RGB")
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = pil_to_tensor(image).float() / 127.5 - 1
        turns = [turn["value"].replace("<image>", "").strip() for turn in record["conversations"]]
        encode = lambda text: self.tokenizer.encode(text).ids
        if len(turns) == 2 and not turns[0]:
            before, ids = [], encode(turns[1] + "\n")
            return pixels, before, ids, list(ids)
        before, ids, labels = encode(SYSTEM + "USER: "), [], []
        for question, answer in zip(turns[::2], turns[1::2]):
            prompt, reply = encode(f"\n{question} ASSISTANT:"), encode(f" {answer}</s>")
            ids += prompt + reply
            labels += [IGNORE] * len(prompt) + reply
        return pixels, before, ids, labels


def collate(batch):
    pixels = torch.stack([pixels for pixels, *_ in batch])
    return pixels, [rest for _, *rest in batch]


def spliced(embed, features, texts):
    """Embeddings with the image features spliced in, labels and mask, right-padded."""
    rows, labels = [], []
    for feature, (before, ids, label) in zip(features, texts):
        head, tail = (embed(torch.tensor(part, dtype=torch.long)) for part in (before, ids))
        rows.append(torch.cat([head, feature, tail]))
        labels.append(torch.tensor([IGNORE] * (len(before) + len(feature)) + label))
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE)
    return rows, labels, mask


def grouped(lengths, size):
    """LLaVA's order: batches of similar length."""
    order = torch.randperm(len(lengths)).tolist()
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [sorted(batch, key=lambda number: -lengths[number]) for batch in batches]


def main():
    stage, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[4]]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    llm = AutoModelForCausalLM.from_pretrained(folder / "phi", dtype=dtype, attn_implementation="sdpa")
    vision = SiglipVisionModel.from_pretrained(folder / "siglip", dtype=dtype, attn_implementation="sdpa").eval()
    tokenizer = Tokenizer.from_file(str(folder / "phi" / "tokenizer.json"))
    hidden, width = vision.config.hidden_size, llm.config.hidden_size
    projector = torch.nn.Sequential(torch.nn.Linear(hidden, width), torch.nn.GELU(), torch.nn.Linear(width, width)).to(dtype)
    llm.requires_grad_(False)
    vision.requires_grad_(False)
    size, annotations = (32, "pretrain.json") if stage == "pretrain" else (16, "instruct.json")
    if stage == "finetune":
        names = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head"]
        lora = LoraConfig(r=64, lora_alpha=64, lora_dropout=0.05, target_modules=names)
        # The adapters in bf16 too: in f32, as by default, they take longer.
        llm = get_peft_model(llm, lora, autocast_adapter_dtype=False).train()
    records = Records(folder / "shapes", annotations, tokenizer, vision.config.image_size)
    batches = grouped(records.lengths(), size)
    loader = DataLoader(records, batch_sampler=batches, num_workers=1, collate_fn=collate)
    parameters = [p for p in [*llm.parameters(), *projector.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, len(batches) // 33), len(batches))
    began = time.perf_counter()
    for pixels, texts in loader:
        with torch.no_grad():
            features = vision(pixel_values=pixels.to(dtype), output_hidden_states=True).hidden_states[-2]
        rows, labels, mask = spliced(llm.get_input_embeddings(), projector(features), texts)
        loss = llm(inputs_embeds=rows, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    print(json.dumps({"examples_per_second": len(records) / (time.perf_counter() - began), "loss": loss.item()}))


main()
