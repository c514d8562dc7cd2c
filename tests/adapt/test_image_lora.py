"""LoRA on Stable Diffusion: diffusers opens our file and we open its; training, merging, and files that don't fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from kiban.adapt.image_lora import FILE, add_image_lora, image_lora_bytes, load_image_lora, save_image_lora
from kiban.adapt.lora import adapters, merge_lora
from kiban.adapt.pictures import TokenUNet, objective_of, rows_of, stack, train
from kiban.errors import ConfigError, FormatError
from kiban.families import stable_diffusion as sd
from kiban.families.clip import TextConfig
from kiban.families.stable_diffusion import StableDiffusion, StableDiffusionConfig
from kiban.nn.unet import UNetConfig
from kiban.nn.vae import VAEConfig
from kiban.train.settings import TrainConfig
from kiban.weights.names import to_published
from random_weights import fill

TOLERANCE = 1e-4


def tower(dim: int, embed_dim: int | None = None) -> TextConfig:
    return TextConfig(
        num_layers=2, dim=dim, num_heads=4, ffn_dim=64, embed_dim=embed_dim, vocab_size=99, max_seq_len=16, eos_id=98,
        quick_gelu=embed_dim is None,
    )  # fmt: skip


def config(*, wide: bool) -> StableDiffusionConfig:
    """SD 1, or SDXL with its two towers and sizes."""
    unet = UNetConfig(
        channels=(16, 32), depths=(0, 2) if wide else (1, 0), num_heads=(2, 4), context_dim=56 if wide else 32,
        num_groups=8, num_res_blocks=1, conv_projections=not wide, added_dim=20 + 6 * 8 if wide else 0, size_dim=8,
    )  # fmt: skip
    texts = (tower(32), tower(24, 20)) if wide else (tower(32),)
    text: dict[str, Any] = {"text_skip": 1, "text_norm": False} if wide else {}
    vae = VAEConfig(channels=(16, 24), num_groups=8, num_res_blocks=1)
    return StableDiffusionConfig(unet=unet, vae=vae, texts=texts, image_size=32, **text)


def random_model(c: StableDiffusionConfig) -> StableDiffusion:
    model = StableDiffusion(c).eval()
    fill(model)
    return model


@torch.no_grad()
def stir(model: StableDiffusion) -> None:
    """What training would do to an adapter's second matrix."""
    source = torch.Generator().manual_seed(3)
    for adapter in adapters(model).values():
        adapter.up.weight.normal_(0, 0.3, generator=source)


def pipeline_of(model: StableDiffusion, folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    for path, values in sd.to_hf(model.config).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(values))
    for part in sd.components(model.config):
        own = dict(model.get_submodule(part.part).named_parameters())
        tensors = to_published(part.names, {name: p.detach() for name, p in own.items()})
        safetensors.torch.save_file(tensors, folder / part.folder / part.weights, metadata={"format": "pt"})
    absent = {name: None for name in json.loads((folder / "model_index.json").read_text()) if "tokenizer" in name}
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)


def asked(c: StableDiffusionConfig) -> tuple[Tensor, Tensor, Tensor]:
    """x, timesteps, and tokens (B, N, T)."""
    source = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 97, (2, len(c.texts), 16), generator=source)
    tokens[..., 9] = 98
    return torch.randn(2, 4, 8, 8, generator=source), torch.tensor([30, 700]), tokens


@torch.no_grad()
def ours(model: StableDiffusion) -> Tensor:
    x, timesteps, tokens = asked(model.config)
    more = {"sizes": torch.tensor([[32, 32, 0, 0, 32, 32]] * 2)} if model.config.num_sizes else {}
    return torch.as_tensor(TokenUNet(model)(x, timesteps, tokens, **more))


@torch.no_grad()
def theirs(pipeline: Any, c: StableDiffusionConfig) -> Tensor:
    x, timesteps, tokens = asked(c)
    if not c.num_sizes:
        states = pipeline.text_encoder(tokens[:, 0]).last_hidden_state
        return torch.as_tensor(pipeline.unet(x, timesteps, states).sample)
    towers = (pipeline.text_encoder, pipeline.text_encoder_2)
    found = [tower(tokens[:, i], output_hidden_states=True) for i, tower in enumerate(towers)]
    states = torch.cat([out.hidden_states[-2] for out in found], dim=-1)
    added = {"text_embeds": found[1].text_embeds, "time_ids": torch.tensor([[32, 32, 0, 0, 32, 32]] * 2)}
    return torch.as_tensor(pipeline.unet(x, timesteps, states, added_cond_kwargs=added).sample)


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_diffusers_opens_our_file_and_draws_the_same(wide: bool, texts: bool, tmp_path: Path) -> None:
    c = config(wide=wide)
    model = random_model(c)
    pipeline = pipeline_of(model, tmp_path / "base")
    before = ours(model)
    add_image_lora(model, rank=3, alpha=5.0, texts=texts, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(model), before)
    stir(model)
    adapted = ours(model)
    assert float((adapted - before).abs().max()) > 0.05
    save_image_lora(model, tmp_path / "lora", base="small")
    pipeline.load_lora_weights(tmp_path / "lora")
    assert float((theirs(pipeline, c) - adapted).abs().max()) < TOLERANCE

    again = random_model(c)
    load_image_lora(again, tmp_path / "lora")
    assert torch.equal(ours(again), adapted)
    assert len(adapters(again)) == len(adapters(model))
    merge_lora(model)
    assert not adapters(model)
    torch.testing.assert_close(ours(model), adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["header", "no header", "kohya"])
def test_files_of_others_are_opened(how: str, tmp_path: Path) -> None:
    """All linear layers of a U-Net's transformers, those that are packed into one among them, with unequal ranks."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    c = config(wide=False)
    model = random_model(c)
    pipeline = pipeline_of(model, tmp_path / "base")
    alphas = {"lora_alpha": 3, "alpha_pattern": {"to_q": 4}} if how == "header" else {"lora_alpha": 3}
    names = ["to_q", "to_k", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
    # Peers see a 1x1 convolution in proj_in, for which kohya and PEFT have adapters that are convolutions.
    pattern = {"ff.net.2": 2} if how == "header" else {}
    pipeline.unet.add_adapter(LoraConfig(r=3, target_modules=[*names, "proj_in"], rank_pattern=pattern, **alphas))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(pipeline.unet.named_parameters()):
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    expected = theirs(pipeline, c)
    layers = get_peft_model_state_dict(pipeline.unet)
    if how == "header":
        facts = pipeline.unet.peft_config["default"].to_dict()
        pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers, unet_lora_adapter_metadata=facts)
        with safe_open(tmp_path / "lora" / FILE, framework="pt") as file:
            assert "alpha_pattern" in file.metadata()["lora_adapter_metadata"]
    elif how == "no header":
        pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    else:
        flat = {}
        for name, tensor in layers.items():
            place, _, letter = name.removesuffix(".weight").rpartition(".lora_")
            stem = f"lora_unet_{place.replace('.', '_')}"
            flat[f"{stem}.lora_{'down' if letter == 'A' else 'up'}.weight"] = tensor.contiguous()
            flat[f"{stem}.alpha"] = torch.tensor(3.0)
        (tmp_path / "lora").mkdir()
        safetensors.torch.save_file(flat, tmp_path / "lora" / FILE)
    load_image_lora(model, tmp_path / "lora")
    assert float((ours(model) - expected).abs().max()) < TOLERANCE
    # And written by us, diffusers draws the same again: packed layers have adapters of twice the rank by then.
    save_image_lora(model, tmp_path / "again", base="small")
    fresh = pipeline_of(random_model(c), tmp_path / "fresh")
    fresh.load_lora_weights(tmp_path / "again")
    assert float((theirs(fresh, c) - expected).abs().max()) < TOLERANCE


def test_training_moves_the_adapters_alone() -> None:
    model = random_model(config(wide=True))  # zeros, with which a U-Net begins, would pass no gradient
    add_image_lora(model, rank=2, alpha=2.0, texts=True, generator=torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, _, tokens = asked(model.config)
    rows = rows_of(model, x, tokens)
    objective = objective_of(TokenUNet(model), model.config, null_context=tokens[0], dropout=0.1)
    fixed = {name: torch.stack([row[name] for row in rows] * 16) for name in rows[0]}
    fixed["seeds"] = torch.arange(32)
    first = float(objective(fixed).total.detach())
    config_ = TrainConfig(steps=40, batch_size=4, micro_batch_size=2, lr=0.02, weight_decay=0.0, precision="fp32")
    train(objective, rows, config_, collate=stack)
    assert float(objective(fixed).total.detach()) < 0.9 * first
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {
        n for n in before if n.endswith((".down.weight", ".up.weight")) and n.split(".")[-3] in ("q", "k", "v", "o")
    }
    # SDXL leaves out the last layer of its first tower.
    assert moved == {name for name in expected if not name.startswith("texts.0.blocks.1.")}
    assert any(name.startswith("texts.1.") for name in moved)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, other = random_model(config(wide=False)), random_model(config(wide=True))
    add_image_lora(model, rank=2, alpha=2.0)
    whole = safetensors.torch.load(image_lora_bytes(model))
    first = next(iter(whole))
    changes: dict[str, dict[str, Tensor]] = {
        "layer that this model has": {f"unet.nowhere.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
        "lacks one of its two": {k: v for k, v in whole.items() if k != first},
        "not a part of": {**whole, "unet.conv_in.weight": torch.ones(1)},
        "matrix that is none": {**whole, first: torch.ones(3)},
        "of a linear layer": {**whole, first: torch.ones(2, 7)},
        "alpha that cannot be read": {**whole, f"{first.split('.lora_')[0]}.alpha": torch.ones(2)},
    }  # fmt: skip
    for words, tensors in changes.items():
        file = tmp_path / "bad.safetensors"
        safetensors.torch.save_file(tensors, file)
        target = random_model(config(wide=False))
        with pytest.raises(FormatError, match=words):
            load_image_lora(target, file)
        assert not adapters(target)
    safetensors.torch.save_file(
        whole, tmp_path / "bad.safetensors", metadata={"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'}
    )
    with pytest.raises(FormatError, match="alpha"):
        load_image_lora(random_model(config(wide=False)), tmp_path / "bad.safetensors")
    save_image_lora(model, tmp_path / "fine", base="small")
    with pytest.raises(FormatError, match="layer that this model has"):
        load_image_lora(other, tmp_path / "fine")
    with pytest.raises(FormatError, match="layer that this model has"):
        load_image_lora(model, tmp_path / "fine")  # which has adapters already
    with pytest.raises(ConfigError, match="rank"):
        add_image_lora(random_model(config(wide=False)), rank=0, alpha=1.0)
