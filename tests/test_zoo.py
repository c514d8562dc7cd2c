"""Presets, loading, saving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.errors import ConfigError, FormatError, IntegrityError, KibanError, ModelNotFoundError, UnsafeFormatError

# Published, or sums of the published shapes. The second number of BERT is with both pretraining heads.
DECODERS = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,
    "llama2-70b": 68_976_648_192,
    "elyza-7b": 6_738_415_616,
    "elyza-7b-fast": 6_845_263_872,
    "swallow-7b": 6_829_969_408,
    "swallow-13b": 13_130_306_560,
    "swallow-70b": 69_159_755_776,
    "rakutenai-7b": 7_372_804_096,
    "smollm2-135m": 134_515_008,
    "qwen2.5-coder-1.5b": 1_543_714_304,
    "gpt1": 116_534_784,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
}
ENCODERS = {
    "bert-base-uncased": (109_482_240, 110_106_428),
    "bert-base-cased": (108_310_272, 108_932_934),
    "bert-large-uncased": (335_141_888, 336_226_108),
    "bert-base-japanese": (110_617_344, 111_243_010),
    "bert-base-japanese-v3": (111_207_168, 111_833_602),
    "bert-base-japanese-char-v3": (91_438_080, 92_038_773),
    "bert-large-japanese-v2": (337_441_792, 338_528_258),
    "bert-tiny": (4_385_920, None),
    "bert-mini": (11_170_560, None),
    "bert-small": (28_763_648, None),
    "bert-medium": (41_373_184, None),
    "minilm-l6": (22_713_216, None),
}


@pytest.mark.parametrize(("preset", "count"), DECODERS.items())
def test_decoders_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    assert zoo.create(preset, device="meta").num_parameters == count


@pytest.mark.parametrize(("preset", "counts"), ENCODERS.items())
def test_encoders_have_the_published_number_of_parameters(preset: str, counts: tuple[int, int | None]) -> None:
    assert zoo.create(preset, device="meta").num_parameters == counts[0]
    if counts[1] is not None:
        assert zoo.create(preset, head="pretraining", device="meta").num_parameters == counts[1]


def test_every_preset_has_its_count_checked() -> None:
    """Here, or for a family of several towers or parts in its own test file."""
    own = {"clip", "resnet", "stable_diffusion"}
    here = {name for name, (family, _) in zoo.presets().items() if family.name not in own}
    assert here == {*DECODERS, *ENCODERS, "llama-tiny", "gpt-tiny"} and own < set(zoo.families())


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (zoo.create("llama-tiny", generator=torch.Generator().manual_seed(7)) for _ in range(2))
    other = zoo.create("llama-tiny", generator=torch.Generator().manual_seed(8))
    pairs = zip(first.module.parameters(), second.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.module.embed.weight, other.module.embed.weight)  # type: ignore[union-attr,arg-type]


def test_a_saved_model_loads_with_equal_weights_labels_and_tokenizer(tiny_bert_folder: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    loaded = zoo.load(tiny_bert_folder, head="sequence_classification", labels=("苦情", "質問"), generator=generator)
    zoo.save(loaded, tmp_path / "model")
    again = zoo.load(tmp_path / "model")
    assert (again.head, again.labels) == ("sequence_classification", ("苦情", "質問"))
    assert again.tokenizer is not None and loaded.tokenizer is not None
    text = "画像を表示する library です"
    assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    ours = dict(loaded.module.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in again.module.named_parameters())


def test_a_fresh_head_is_drawn_from_the_generator(tiny_bert_folder: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        loaded = zoo.load(tiny_bert_folder, head="sequence_classification", labels=("a", "b"), generator=generator)
        return loaded.module.get_parameter("classifier.weight")

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_a_fresh_head_without_labels_is_refused(tiny_bert_folder: Path) -> None:
    with pytest.raises(ConfigError, match="labels"):
        zoo.load(tiny_bert_folder, head="sequence_classification")


def test_an_existing_folder_is_never_written_over(tiny_bert_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(KibanError, match="model"):
        zoo.save(zoo.load(tiny_bert_folder), tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "hint"), [("minilm-l7", "minilm-l6"), ("smolm2-135m-instruct", "smollm2-135m-instruct")]
)
def test_a_misspelt_name_is_answered_with_the_closest(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFoundError, match=hint):
        zoo.load(name)


def test_a_misspelt_preset_or_head_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="llama2-7b"):
        zoo.create("llama2-7", device="meta")
    with pytest.raises(ConfigError, match="masked_lm"):
        zoo.create("bert-tiny", head="maskedlm", device="meta")


def test_a_folder_of_an_unknown_family_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(FormatError, match="mamba"):
        zoo.load(tmp_path)


def test_a_config_that_lacks_a_size_is_told(tiny_bert_folder: Path, tmp_path: Path) -> None:
    values = json.loads((tiny_bert_folder / "config.json").read_text())
    del values["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(FormatError, match="hidden_size"):
        zoo.load(tmp_path)


def test_a_folder_with_only_a_pickle_is_refused_unopened(tiny_bert_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_bert_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UnsafeFormatError, match="safetensors"):
        zoo.load(tmp_path)


def test_one_changed_byte_of_a_saved_model_is_noticed(tiny_bert_folder: Path, tmp_path: Path) -> None:
    zoo.save(zoo.load(tiny_bert_folder), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        zoo.load(tmp_path / "model")
