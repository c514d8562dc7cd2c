"""LoRA: nothing changes at first, merging changes nothing, and PEFT reads and writes the same adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kiban import zoo
from kiban.adapt.lora import adapters, add_lora, load_peft, merge_lora, save_peft
from kiban.errors import ConfigError, FormatError
from kiban.families.llama import Llama, LlamaConfig

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
SIZES: dict[str, Any] = {"vocab_size": 61, "num_layers": 2, "dim": 32, "num_heads": 4, "num_kv_heads": 2}
SIZES |= {"ffn_dim": 48, "max_seq_len": 32}


def tiny() -> zoo.Loaded:
    module = zoo.initialise(Llama(LlamaConfig(**SIZES)), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return zoo.Loaded(zoo.families()["llama"], LlamaConfig(**SIZES), module.eval(), None, None, (), "tiny", None)


def stir(module: nn.Module) -> None:
    """Give the adapters something to say."""
    with torch.no_grad():
        for number, adapter in enumerate(adapters(module).values()):
            generator = torch.Generator().manual_seed(number)
            adapter.up.weight.copy_(0.2 * torch.randn(adapter.up.weight.shape, generator=generator))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_at_first_nothing_changes_and_merging_keeps_what_was_learned(tokens: Tensor) -> None:
    module = tiny().module
    before = module(tokens)
    places = add_lora(module, rank=4, alpha=8, targets=LINEAR, generator=torch.Generator().manual_seed(0))
    assert len(places) == 14 and torch.equal(module(tokens), before)
    stir(module)
    learned = module(tokens)
    assert (learned - before).abs().max() > 0.1
    merge_lora(module)
    assert not adapters(module)
    assert (module(tokens) - learned).abs().max() < 1e-5


def test_only_the_adapters_learn() -> None:
    module = tiny().module
    add_lora(module, rank=2, alpha=2, targets=("q", "v"))
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert len(learning) == 8 and all(name.endswith(("down.weight", "up.weight")) for name in learning)


@pytest.mark.parametrize(
    ("preset", "rank", "targets", "count"),
    [
        ("llama2-7b", 8, ("q", "v"), 4_194_304),
        ("llama2-7b", 16, LINEAR, 39_976_960),
        ("llama2-70b", 16, LINEAR, 207_093_760),
    ],
)
def test_adapters_have_the_published_number_of_parameters(
    preset: str, rank: int, targets: tuple[str, ...], count: int
) -> None:
    module = zoo.create(preset, device="meta").module
    add_lora(module, rank=rank, alpha=16, targets=targets)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count


def test_what_cannot_be_adapted_is_told() -> None:
    with pytest.raises(ConfigError, match="rank"):
        add_lora(tiny().module, rank=0, alpha=1, targets=LINEAR)
    with pytest.raises(ConfigError, match="query"):
        add_lora(tiny().module, rank=1, alpha=1, targets=("query",))


@torch.no_grad()
def test_a_saved_adapter_of_a_decoder_gives_the_same_logits_in_peft(tokens: Tensor, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = tiny()
    zoo.save(loaded, tmp_path / "base")
    add_lora(loaded.module, rank=4, alpha=12, targets=LINEAR, generator=torch.Generator().manual_seed(0))
    stir(loaded.module)
    save_peft(loaded, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (theirs(tokens).logits - loaded.module(tokens)).abs().max() < 1e-4


@torch.no_grad()
def test_a_saved_adapter_of_a_classifier_gives_the_same_logits_in_peft(tokens: Tensor, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    zoo.save(tiny(), tmp_path / "base")
    generator = torch.Generator().manual_seed(7)
    loaded = zoo.load(tmp_path / "base", head="sequence_classification", labels=("良", "悪", "他"), generator=generator)
    add_lora(loaded.module, rank=4, alpha=4, targets=("q", "v"), generator=generator)
    stir(loaded.module)
    save_peft(loaded, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3, dtype=torch.float32)
    base.config.pad_token_id = 0
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (theirs(tokens).logits - loaded.module(tokens)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CAUSAL_LM", "SEQ_CLS"])
def test_an_adapter_that_peft_wrote_gives_the_same_logits_here(tokens: Tensor, tmp_path: Path, kind: str) -> None:
    import transformers
    from peft import LoraConfig, get_peft_model

    zoo.save(tiny(), tmp_path / "base")
    name = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}[kind]
    extra = {"num_labels": 3} if kind == "SEQ_CLS" else {}
    base = getattr(transformers, name).from_pretrained(tmp_path / "base", dtype=torch.float32, **extra)
    base.config.pad_token_id = 0
    config = LoraConfig(task_type=kind, r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    theirs = get_peft_model(base, config).eval()
    for number, (place, parameter) in enumerate(theirs.named_parameters()):
        if "lora_B" in place or "score" in place:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    theirs.save_pretrained(tmp_path / "adapter")
    head = {"head": "sequence_classification", "labels": ("a", "b", "c")} if kind == "SEQ_CLS" else {}
    loaded = zoo.load(tmp_path / "base", **head)  # type: ignore[arg-type]
    load_peft(loaded, tmp_path / "adapter")
    assert (theirs(tokens).logits - loaded.module(tokens)).abs().max() < 1e-4


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    loaded = tiny()
    add_lora(loaded.module, rank=2, alpha=2, targets=("q",))
    save_peft(loaded, tmp_path / "adapter", base="x")
    config = tmp_path / "adapter" / "adapter_config.json"
    text = config.read_text(encoding="utf-8")
    (tmp_path / "adapter" / "kiban.json").unlink()  # else the change itself is noticed
    config.write_text(text.replace('"LORA"', '"IA3"'), encoding="utf-8")
    with pytest.raises(FormatError, match="LoRA"):
        load_peft(tiny(), tmp_path / "adapter")
    config.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError):
        load_peft(zoo.create("bert-tiny", generator=torch.Generator().manual_seed(0)), tmp_path / "adapter")
    other = LlamaConfig(**{**SIZES, "dim": 64, "ffn_dim": 96})
    wide = zoo.Loaded(zoo.families()["llama"], other, Llama(other), None, None, (), "wide", None)
    with pytest.raises(FormatError):
        load_peft(wide, tmp_path / "adapter")
