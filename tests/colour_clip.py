"""A CLIP that has learned three colours in two languages, in seconds, and pictures for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from PIL import Image

from kiban import zoo
from kiban.evaluate.zero_shot import TEMPLATES
from kiban.families.clip import CLIP, CLIPConfig, TextConfig, VisionConfig, text_batch
from kiban.inputs.image import clip_batch
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.objectives.contrastive import Contrastive

COLOURS = {"red": (210, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 220)}
NAMES = {"en": ("red", "green", "blue"), "ja": ("赤", "緑", "青")}
SIZE = 16


def picture(name: str, seed: int) -> Image.Image:
    """An even colour with noise, in an odd size."""
    noise = torch.randint(-25, 26, (20, 26, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise + torch.tensor(COLOURS[name])).clamp(0, 255).to(torch.uint8).numpy())


def write_pictures(folder: Path, count: int = 3) -> Path:
    """count of each colour, the blue ones in a folder of their own."""
    for name in COLOURS:
        inner = folder / ("海" if name == "blue" else ".")
        inner.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(name, 500 + number).save(inner / f"{name}{number}.png")
    return folder


def write_model(folder: Path) -> Path:
    """Train it on prompts of both languages, and save it."""
    prompts = {lang: [[t.format(name) for name in NAMES[lang]] for t in TEMPLATES[lang]] for lang in NAMES}
    texts = [text for groups in prompts.values() for group in groups for text in group]
    tokenizer = train_clip_bpe(texts * 3, vocab_size=640, max_len=32)
    shape = {"num_layers": 2, "dim": 32, "num_heads": 2, "ffn_dim": 64, "embed_dim": 24}
    text = TextConfig(vocab_size=tokenizer.vocab_size, max_seq_len=32, eos_id=tokenizer.eos_id, **shape)
    config = CLIPConfig(text=text, vision=VisionConfig(image_size=SIZE, patch_size=8, **shape))
    made = zoo.new(zoo.families()["clip"], config, "colours", generator=torch.Generator().manual_seed(0))
    assert isinstance(made.module, CLIP)
    objective, optimizer = Contrastive(made.module), torch.optim.Adam(made.module.parameters(), lr=2e-3)
    for step in range(48):
        pixels = clip_batch([picture(name, 100 * step + i) for i, name in enumerate(COLOURS)], size=SIZE)
        for groups in prompts.values():
            tokens = text_batch(tokenizer, groups[step % len(groups)], text)
            optimizer.zero_grad()
            objective({"images": pixels, "tokens": tokens}).total.backward()
            optimizer.step()
    zoo.save(dataclasses.replace(made, tokenizer=tokenizer), folder)
    return folder
