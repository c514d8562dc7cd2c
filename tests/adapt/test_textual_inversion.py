"""Textual inversion: a word learns and nothing else, diffusers opens its file, and files and tokenizers that don't fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from kiban import zoo
from kiban.adapt.pictures import TokenUNet, prompt_tokens, rows_of, stack, train
from kiban.adapt.textual_inversion import (
    FILE,
    TEMPLATES,
    add_word,
    load_words,
    merge_words,
    save_word,
    spell,
    word_objective,
    word_rows,
)
from kiban.errors import ConfigError, FormatError
from kiban.families import stable_diffusion as sd
from kiban.families.stable_diffusion import PRESETS, StableDiffusion
from kiban.inputs.tokenizer import Tokenizer
from kiban.train.settings import TrainConfig
from kiban.weights.names import to_published

WORDS = "a photo picture rendering close-up cropped bright good one depiction of the toy cat".split()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tokenizer of letters and a few words."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("-<>_0123456789")
    vocab = {token: i for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            vocab.setdefault("".join(pair), len(vocab))
            parts = ["".join(pair), *parts[2:]]
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    folder = tmp_path_factory.mktemp("clip")
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=24).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(clip_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(clip_folder)


def model_of(tokenizer: Tokenizer) -> StableDiffusion:
    """sd-tiny with the tokenizer's vocabulary; a U-Net that has learned nothing would pass no gradient."""
    c = PRESETS["sd-tiny"]
    text = replace(c.texts[0], vocab_size=tokenizer.vocab_size, max_seq_len=24, eos_id=tokenizer.eos_id)
    model = zoo.initialise(StableDiffusion(replace(c, texts=(text,))), torch.Generator().manual_seed(0))
    assert isinstance(model, StableDiffusion)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            if not parameter.any() and parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=source)
    return model


def states(model: StableDiffusion, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        tokens = prompt_tokens([tokenizer], [spell(prompt, model) for prompt in prompts], model.config)
        return model.encode_text(tokens.unbind(1)).context


def test_a_word_learns_and_nothing_else(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    plain = ["a photo of the cat", "a bright toy"]
    expected = states(model, tokenizer, plain)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grown = add_word(model, tokenizer, "<toy>", like="toy cat", num_vectors=2)
    assert grown.vocab_size == tokenizer.vocab_size + 2
    assert grown.encode("a <toy> of", add_special=False)[1:2] == [tokenizer.vocab_size]
    assert spell("a photo of <toy>!", model) == "a photo of <toy> <toy>_1!"
    embed: Any = model.texts[0].embed
    rows = before["texts.0.embed.weight"]
    ids = tokenizer.encode("toy cat", add_special=False)
    assert len(ids) == 2 and torch.equal(embed.new[1].detach(), rows[ids].mean(0))
    assert torch.equal(states(model, grown, plain), expected)

    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    rows_ = word_rows(model, grown, "<toy>", latents)
    assert len(rows_) == 2 * len(TEMPLATES) and all(
        (row["context"] >= tokenizer.vocab_size).sum() == 2 for row in rows_
    )
    first = embed.new.detach().clone()
    objective = word_objective(model)
    fixed = {**stack([(row, 0) for row in rows_]), "seeds": torch.arange(16)}
    start = float(objective(fixed).total.detach())
    config = TrainConfig(steps=25, batch_size=4, micro_batch_size=4, lr=0.05, precision="fp32")
    train(objective, rows_, config, collate=stack)
    assert float(objective(fixed).total.detach()) < start
    after = {name.replace("embed.base", "embed"): p for name, p in model.named_parameters()}
    del after["texts.0.embed.new"]
    assert after.keys() == before.keys() and all(torch.equal(p, before[name]) for name, p in after.items())
    assert bool((embed.new != first).any(1).all()) and torch.equal(states(model, grown, plain), expected)


def test_diffusers_opens_the_file_and_reads_the_same(tokenizer: Tokenizer, clip_folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    model = model_of(tokenizer)
    folder = tmp_path / "base"
    for path, values in sd.to_hf(model.config).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(values))
    for part in sd.components(model.config):
        tensors = to_published(
            part.names, {n: p.detach() for n, p in model.get_submodule(part.part).named_parameters()}
        )
        safetensors.torch.save_file(tensors, folder / part.folder / part.weights, metadata={"format": "pt"})
    CLIPTokenizer.from_pretrained(clip_folder).save_pretrained(folder / "tokenizer")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)

    prompts = ["a photo of a <toy>", "a <toy> cat", "the cat"]
    sizes = {"<toy>": 2, "<one>": 1}
    for word, size in sizes.items():
        alone = model_of(tokenizer)
        add_word(alone, tokenizer, word, like="toy", num_vectors=size)
        embed: Any = alone.texts[0].embed
        with torch.no_grad():
            embed.new.normal_(0, 0.5, generator=torch.Generator().manual_seed(size))
        save_word(alone, word, tmp_path / word.strip("<>"), base="small")
        pipeline.load_textual_inversion(tmp_path / word.strip("<>"))
    grown = load_words(model, tokenizer, [tmp_path / "toy", tmp_path / "one" / FILE])
    prompts += ["a <one> toy"]
    found = states(model, grown, prompts)
    told = [pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer) for prompt in prompts]
    given = pipeline.tokenizer(
        told, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(given, prompt_tokens([grown], [spell(p, model) for p in prompts], model.config)[:, 0])
    with torch.no_grad():
        expected = pipeline.text_encoder(given).last_hidden_state
    assert float((found - expected).abs().max()) < 1e-4
    assert float((found[0] - states(model, grown, ["a photo of a toy"])[0]).abs().max()) > 0.1

    merge_words(model)
    torch.testing.assert_close(states(model, grown, told), found)
    assert model.config.texts[0].vocab_size == grown.vocab_size == len(model.texts[0].embed.weight)
    names = next(part.names for part in sd.components(model.config) if part.folder == "text_encoder")
    assert len(to_published(names, model.texts[0].state_dict())) == len(model.texts[0].state_dict())
    # Another word may follow.
    assert add_word(model, grown, "<third>", like="cat").vocab_size == grown.vocab_size + 1


def test_errors(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of(tokenizer)
    with pytest.raises(ConfigError, match="already"):
        add_word(model, tokenizer, "cat</w>", like="cat")
    with pytest.raises(ConfigError, match="like"):
        add_word(model, tokenizer, "<x>", like="")
    with pytest.raises(ConfigError, match="cannot be grown together"):
        small = replace(model.config, texts=(replace(model.config.texts[0], vocab_size=300),))
        add_word(StableDiffusion(small), tokenizer, "<x>", like="cat")
    dim = model.config.texts[0].dim
    bad: list[dict[str, Tensor]] = [
        {"<x>": torch.ones(dim), "<y>": torch.ones(dim)},
        {"<x>": torch.ones(2, dim + 1)},
        {"<x>": torch.ones(1, 1, dim)},
        {"<x>": torch.ones(0, dim)},
    ]
    for tensors in bad:
        safetensors.torch.save_file(tensors, tmp_path / FILE)
        with pytest.raises(FormatError, match="one word"):
            load_words(model, tokenizer, [tmp_path])
    safetensors.torch.save_file({"<x>": torch.ones(dim)}, tmp_path / FILE)
    with pytest.raises(FormatError, match="another file"):
        load_words(model, tokenizer, [tmp_path, tmp_path / FILE])
    grown = load_words(model, tokenizer, [tmp_path])
    with pytest.raises(ConfigError, match="merge_words"):
        add_word(model, grown, "<y>", like="cat")
    c = PRESETS["sdxl-base"]
    with torch.device("meta"):
        wide = StableDiffusion(c)
    with pytest.raises(ConfigError, match="2 text towers"):
        add_word(wide, tokenizer, "<x>", like="cat")


def test_prompts_are_padded_to_all_positions(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    tokens = prompt_tokens([tokenizer], ["a cat", "the toy " * 20], model.config)
    assert tokens.shape == (2, 1, 24) and int(tokens[1, 0, -1]) == tokenizer.eos_id
    assert (tokens[0, 0, 3:] == tokenizer.pad_id).all()
    row = rows_of(model, torch.zeros(1, 4, 8, 8), tokens[:1])[0]
    assert TokenUNet(model)(row["latents"][None], torch.tensor([3]), row["context"][None]).shape == (1, 4, 8, 8)
