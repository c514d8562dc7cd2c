"""CLIP against transformers and open_clip, random weights, float32, in both directions; counts; one batch learned."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kiban import zoo
from kiban.errors import ConfigError, FormatError, KibanError, LimitError, ModelNotFoundError, UnsafeFormatError
from kiban.families.clip import (
    CLIP,
    MAX_SCALE,
    PRESETS,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TextTower,
    VisionConfig,
)
from kiban.inputs.image import clip_pixels
from kiban.weights import clip_config, clip_names
from kiban.weights.names import to_ours, to_published
from kiban.zoo.open_clip import load_open_clip, read_openai, save_open_clip

sys.path.insert(0, str(Path(__file__).parent.parent / "nn"))
from open_clip_parts import part

TOLERANCE = 1e-4
EOS, VOCAB, LENGTH, SIZE = 90, 101, 16, 24
COUNTS = {
    "clip-vit-b-32": 151_277_313,
    "clip-vit-b-16": 149_620_737,
    "clip-vit-l-14": 427_616_513,
    "clip-vit-l-14-336": 427_944_193,
    "clip-rn50": 102_007_137,
    "clip-rn101": 119_688_033,
    "clip-rn50x4": 178_300_601,
    "clip-rn50x16": 290_979_217,
    "clip-rn50x64": 623_258_305,
    "clip-vit-h-14": 986_109_441,
    "clip-vit-bigg-14": 2_539_567_105,
    "clip-tiny": 1_918_977,
}


def config(*, eos_id: int | None = EOS, quick: bool = True, resnet: bool = False, eps: float = 1e-5) -> CLIPConfig:
    """A narrow CLIP; feed-forward and heads of other sizes than usual."""
    shape = {"quick_gelu": quick, "norm_eps": eps, "embed_dim": 20}
    text = TextConfig(
        num_layers=3, dim=32, num_heads=4, ffn_dim=48, vocab_size=VOCAB, max_seq_len=LENGTH, eos_id=eos_id, **shape
    )
    if resnet:
        vision = ResNetConfig(num_blocks=(1, 2, 1, 1), width=8, num_heads=4, image_size=64, embed_dim=20)
        return CLIPConfig(text=text, vision=vision)
    shapes = VisionConfig(num_layers=2, dim=48, num_heads=3, ffn_dim=80, image_size=SIZE, patch_size=8, **shape)
    return CLIPConfig(text=text, vision=shapes)


def clip(c: CLIPConfig) -> CLIP:
    """With weights, norms and running statistics such that a mistake shows."""
    model = CLIP(c)
    zoo.initialise(model, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator) * (1 if tensor.ndim == 1 else 0.3))
    return model.eval()


def texts() -> Tensor:
    """Four rows whose end comes at different places, with padding of the same token behind it; others have larger ids."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, EOS, (4, LENGTH), generator=generator)
    for row, end in enumerate((3, 15, 8, 1)):
        tokens[row, end:] = EOS
    tokens[2, 5] = VOCAB - 1
    return tokens


def images(size: int = SIZE) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


def near(mine: Tensor, expected: Tensor) -> bool:
    return mine.shape == expected.shape and float((mine - expected).detach().abs().max()) < TOLERANCE


def hf(c: CLIPConfig) -> Any:
    import transformers

    torch.manual_seed(0)
    values = transformers.CLIPConfig(**clip_config.to_hf(dataclasses.asdict(c)))
    model = transformers.CLIPModel(values).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("eos_id", [EOS, None])
def test_a_folder_of_transformers_gives_the_same_outputs_here(tmp_path: Path, eos_id: int | None, quick: bool) -> None:
    theirs = hf(config(eos_id=eos_id, quick=quick, eps=1e-3))
    theirs.save_pretrained(tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.family.name == "clip" and loaded.config == config(eos_id=eos_id, quick=quick, eps=1e-3)
    same_outputs(loaded.module, theirs)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("eos_id", [EOS, None])
def test_a_folder_of_ours_gives_the_same_outputs_in_transformers(
    tmp_path: Path, eos_id: int | None, quick: bool
) -> None:
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    c = config(eos_id=eos_id, quick=quick)
    model = clip(c)
    zoo.save(zoo.Loaded(zoo.families()["clip"], c, model, None, None, (), "clip", None), tmp_path / "model")
    theirs, told = transformers.CLIPModel.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    same_outputs(model, theirs.eval())
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    assert np.array_equal(processor(picture)["pixel_values"][0], clip_pixels(picture, size=c.vision.image_size))


@torch.no_grad()
def same_outputs(ours: Any, theirs: Any) -> None:
    tokens, pixels = texts(), images()
    out = theirs(input_ids=tokens, pixel_values=pixels)
    assert near(ours.encode_text(tokens), out.text_embeds)
    assert near(ours.encode_image(pixels), out.image_embeds)
    assert near(ours.eval()(pixels, tokens), out.logits_per_image)
    text = theirs.text_model(input_ids=tokens, output_hidden_states=True)
    assert near(ours.text.hidden(tokens), text.last_hidden_state)
    assert near(ours.text.pooled(tokens), text.pooler_output)
    for skip in range(4):
        assert near(ours.text.hidden(tokens, skip=skip, norm=False), text.hidden_states[-1 - skip])
        assert near(
            ours.text.hidden(tokens, skip=skip), theirs.text_model.final_layer_norm(text.hidden_states[-1 - skip])
        )
    early, embedding = ours.text.hidden_and_embedding(tokens, skip=1)
    assert near(early, text.hidden_states[-2])
    assert near(embedding, theirs.get_text_features(tokens).pooler_output)
    assert near(ours.vision.hidden(pixels), theirs.vision_model(pixels).last_hidden_state)
    # transformers' attention mask hides the padding, which comes behind all that counts.
    mask = (tokens == EOS).cumsum(-1) <= 1
    masked = theirs(input_ids=tokens, pixel_values=pixels, attention_mask=mask.long())
    assert near(ours.encode_text(tokens), masked.text_embeds)


def test_the_rules_of_pooling_differ_where_a_larger_id_stands_in_the_text() -> None:
    model, tokens = clip(config()).text, texts()
    other = TextTower(dataclasses.replace(model.config, eos_id=None)).eval()
    other.load_state_dict(model.state_dict())
    same = [bool(torch.equal(a, b)) for a, b in zip(model.pooled(tokens), other.pooled(tokens), strict=True)]
    assert same == [True, True, False, True]


def test_what_comes_behind_the_end_of_a_text_does_not_matter() -> None:
    model, tokens = clip(config()), texts()
    changed = tokens.clone()
    changed[0, 4:], changed[3, 2:] = 7, 11
    assert near(model.encode_text(changed), model.encode_text(tokens))
    assert near(model.encode_text(tokens[3:, :2]), model.encode_text(tokens[3:]))


@pytest.mark.parametrize("projected", [True, False])
def test_a_text_tower_by_itself_is_that_of_transformers_with_old_and_new_names(tmp_path: Path, projected: bool) -> None:
    """transformers 5 leaves a prefix out, which version 4 and all published files have."""
    import transformers

    c = dataclasses.replace(config().text, embed_dim=20 if projected else None)
    tower = TextTower(c)
    tower.initialise(torch.Generator().manual_seed(0))
    names = clip_names.hf_text(projected=projected)
    written = to_published(names, {name: p.detach() for name, p in tower.named_parameters()})
    assert all(name.startswith(("text_model.", "text_projection.")) for name in written)
    save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    values = clip_config.text_to_hf(dataclasses.asdict(c))
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    kind = getattr(transformers, values["architectures"][0])
    theirs, told = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    out = theirs.eval()(input_ids=texts())
    assert near(tower(texts()), out.text_embeds if projected else out.pooler_output)
    assert TextConfig(**clip_config.text_from_hf(theirs.config.to_dict(), projected=projected)) == c
    for state in (theirs.state_dict(), written):
        again = to_ours(names, state, wanted=dict(tower.named_parameters()), source="file")
        assert all(torch.equal(again[name], p) for name, p in tower.named_parameters())


@pytest.mark.parametrize(("preset", "count"), COUNTS.items())
def test_sizes_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        model = CLIP(PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_preset_has_its_count_checked() -> None:
    assert set(COUNTS) == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "changes", "count"),
    [
        ("clip-vit-l-14", {"embed_dim": None}, 123_060_480),
        ("clip-vit-h-14", {"embed_dim": None, "num_layers": 23}, 340_387_840),
        ("clip-vit-bigg-14", {}, 694_659_840),
    ],
)
def test_text_towers_of_stable_diffusion_have_their_counts(preset: str, changes: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        tower = TextTower(dataclasses.replace(PRESETS[preset].text, **changes))
    assert sum(p.numel() for p in tower.parameters()) == count


@pytest.mark.parametrize("resnet", [True, False])
def test_a_folder_in_open_clips_form_comes_back_equal(tmp_path: Path, resnet: bool) -> None:
    model = clip(config(resnet=resnet))
    save_open_clip(model, tmp_path / "model")
    again = load_open_clip(tmp_path / "model")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(KibanError, match="exists already"):
        save_open_clip(model, tmp_path / "model")


@pytest.mark.parametrize("resnet", [True, False])
def test_names_are_those_of_open_clip_and_so_are_the_outputs(tmp_path: Path, resnet: bool) -> None:
    """Built by open_clip from the file that we write; what it writes is what we read."""
    model = clip(config(resnet=resnet, quick=True))
    save_open_clip(model, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "open_clip_config.json").read_text("utf-8"))["model_cfg"]
    theirs = part("model").CLIP(**values).eval()
    from safetensors.torch import load_file

    theirs.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    pixels = images(64 if resnet else SIZE)
    with torch.no_grad():
        assert near(model.encode_image(pixels), theirs.encode_image(pixels, normalize=True))
        assert near(model.encode_text(texts()), theirs.encode_text(texts(), normalize=True))
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in theirs.state_dict().items()},
        tmp_path / "half.safetensors",
    )
    half = read_openai(tmp_path / "half.safetensors", model.config)
    assert all(torch.equal(p, model.get_parameter(name).half().float()) for name, p in half.named_parameters())


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("clip-rn50x4", "RN50x4"),
        ("clip-rn50x16", "RN50x16"),
        ("clip-rn50x64", "RN50x64"),
        ("clip-vit-h-14", "ViT-H-14"),
        ("clip-vit-bigg-14", "ViT-bigG-14"),
    ],
)
def test_counts_of_the_other_sizes_are_open_clips(preset: str, name: str) -> None:
    path = Path(part("model").__file__).parent / "model_configs" / f"{name}.json"
    values = json.loads(path.read_text("utf-8"))
    with torch.device("meta"):
        assert sum(p.numel() for p in part("model").CLIP(**values).parameters()) == COUNTS[preset]
    ours = clip_config.from_open_clip({**values, "quick_gelu": "vit" not in preset})
    assert (
        CLIPConfig(
            text=TextConfig(**{**ours["text"], "eos_id": 49407}),
            vision=(VisionConfig if "vit" in preset else ResNetConfig)(**ours["vision"]),
        )
        == PRESETS[preset]
    )


def test_an_openai_file_with_sizes_and_without_counts_of_batches_is_read(tmp_path: Path) -> None:
    model = clip(config(resnet=True))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    file = to_published(clip_names.openai(resnet=True), state)
    file = {name: tensor for name, tensor in file.items() if not name.endswith("num_batches_tracked")}
    file |= {"input_resolution": torch.tensor(64), "context_length": torch.tensor(16), "vocab_size": torch.tensor(1)}
    file["logit_scale"] = file["logit_scale"].reshape(1)
    save_file(file, tmp_path / "model.safetensors")
    again = read_openai(tmp_path / "model.safetensors", model.config)
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in again.named_parameters())
    assert near(again.encode_image(images(64)), model.encode_image(images(64)))


def test_a_resnet_has_no_hugging_face_folder_and_says_where_it_can_go(tmp_path: Path) -> None:
    c = config(resnet=True)
    loaded = zoo.Loaded(zoo.families()["clip"], c, clip(c), None, None, (), "rn", None)
    with pytest.raises(FormatError, match="save_open_clip"):
        zoo.save(loaded, tmp_path / "model")
    with pytest.raises(FormatError, match="save_open_clip"):
        zoo.families()["clip"].hf_names(c)
    assert not (tmp_path / "model").exists()


def test_a_model_that_does_not_fit_is_told(tmp_path: Path) -> None:
    model = clip(config())
    save_open_clip(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    deeper = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, num_layers=4))
    with pytest.raises(FormatError, match=r"missing: 'text\.blocks\.3"):
        read_openai(file, deeper)
    narrow = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, vocab_size=100))
    with pytest.raises(FormatError, match=r"text\.embed\.weight.*expected \(100, 32\)"):
        read_openai(file, narrow)
    (tmp_path / "old.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UnsafeFormatError):
        read_openai(tmp_path / "old.pt", model.config)
    config_file = (tmp_path / "model" / "open_clip_config.json").read_text("utf-8")
    (tmp_path / "open_clip_config.json").write_text(config_file, "utf-8")
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        load_open_clip(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_cfg", "timm_model_name", "convnext_base"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "norm_kwargs", {"eps": 1e-6}),
    ],
)
def test_open_clips_other_models_are_refused_by_name(tmp_path: Path, part: str, key: str, value: Any) -> None:
    values = clip_config.to_open_clip(dataclasses.asdict(config()))
    values[part][key] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": values}), "utf-8")
    with pytest.raises(FormatError, match=key):
        load_open_clip(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"vision_cfg": 3, "text_cfg": {}, "embed_dim": 4},
        {"vision_cfg": {"head_width": 0}, "text_cfg": {}, "embed_dim": 4},
        {"vision_cfg": {}, "text_cfg": {"width": "x"}, "embed_dim": 4},
    ],
)
def test_a_broken_open_clip_config_is_told(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(FormatError, match="open_clip_config"):
        load_open_clip(tmp_path)


def test_settings_that_contradict_are_refused() -> None:
    c = config()
    with pytest.raises(ConfigError, match="embed_dim"):
        CLIPConfig(text=dataclasses.replace(c.text, embed_dim=21), vision=c.vision)
    with pytest.raises(ConfigError, match="largest id"):
        dataclasses.replace(c.text, eos_id=2)
    with pytest.raises(ConfigError, match="patch_size"):
        dataclasses.replace(c.vision, image_size=25)
    with pytest.raises(ConfigError, match="num_heads"):
        dataclasses.replace(c.text, num_heads=5)
    for change in ({"num_heads": 0}, {"patch_size": 0}):
        with pytest.raises(ConfigError, match="=0"):
            dataclasses.replace(c.vision, **change)


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("text_config", "hidden_act", "relu", "hidden_act"),
        ("vision_config", "num_channels", 1, "num_channels"),
        ("text_config", "eos_token_id", [2, 3], "eos_token_id"),
    ],
)
def test_a_hugging_face_config_of_another_model_is_told(part: str, key: str, value: Any, told: str) -> None:
    values = clip_config.to_hf(dataclasses.asdict(config()))
    values[part][key] = value
    with pytest.raises(FormatError, match=told):
        clip_config.from_hf(values)


def test_what_a_config_leaves_out_has_the_defaults_of_transformers() -> None:
    import transformers

    theirs = transformers.CLIPConfig()
    full = {"text_config": theirs.text_config.to_dict(), "vision_config": theirs.vision_config.to_dict()}
    assert clip_config.from_hf({}) == clip_config.from_hf({**full, "projection_dim": theirs.projection_dim})
    early = {"text_config": {}, "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12}}
    assert clip_config.from_hf(early)["text"]["dim"] == transformers.CLIPConfig(**early).text_config.hidden_size == 768


def test_a_picture_or_text_of_another_size_is_told() -> None:
    model = clip(config())
    with pytest.raises(LimitError, match="24 x 24"):
        model.encode_image(torch.zeros(1, 3, 24, 32))
    with pytest.raises(LimitError, match="16 positions"):
        model.encode_text(torch.zeros(1, 17, dtype=torch.long))


def test_initial_weights_are_those_of_the_released_code() -> None:
    model = zoo.create("clip-tiny", generator=torch.Generator().manual_seed(0)).module
    assert isinstance(model, CLIP)
    branch = 128**-0.5 * 8**-0.5
    expected = {
        "text.embed.weight": 0.02,
        "text.position.weight": 0.01,
        "text.blocks.2.attn.q.weight": 128**-0.5,
        "text.blocks.2.attn.o.weight": branch,
        "vision.blocks.1.ffn.up.weight": 256**-0.5,
        "vision.blocks.1.ffn.down.weight": branch,
        "vision.projection.weight": 128**-0.5,
        "vision.patches.conv.weight": (3 * 64) ** -0.5,
    }
    for name, std in expected.items():
        assert float(model.get_parameter(name).detach().std()) == pytest.approx(std, rel=0.05), name
    assert float(model.scale().detach()) == pytest.approx(1 / 0.07)
    again = zoo.create("clip-tiny", generator=torch.Generator().manual_seed(0)).module
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_scale_stays_in_its_range_while_it_learns_and_can_come_back() -> None:
    model = CLIP(config())
    for given, kept in ((9.0, MAX_SCALE), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            model.logit_scale.fill_(given)
        model.train().scale().backward()
        assert float(model.logit_scale.detach()) == pytest.approx(kept)
        assert float(model.logit_scale.grad) == pytest.approx(torch.tensor(kept).exp().item(), rel=1e-5)  # type: ignore[arg-type]
        model.logit_scale.grad = None


def test_a_tokenizer_of_transformers_gives_the_same_ids_here(tmp_path: Path) -> None:
    """Lower case, `</w>` at the end of a word, 77 tokens with the end kept."""
    import transformers
    from tokenizers import Tokenizer as Library
    from tokenizers import models, trainers

    from kiban.inputs.tokenizer import Tokenizer

    blank = transformers.CLIPTokenizer()
    learner = Library(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = (
        blank.backend_tokenizer.normalizer,
        blank.backend_tokenizer.pre_tokenizer,
    )
    letters = sorted(__import__("tokenizers").pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(
        ["A photo of a red cat, it's small.", "赤い猫の絵文字", "two dogs run in 2026"] * 5, trainer
    )
    state = json.loads(learner.to_str())["model"]
    vocabulary = state["vocab"] | {letter + "</w>": 10**6 + i for i, letter in enumerate(letters)}
    ordered = [*sorted(vocabulary, key=vocabulary.get), "<|startoftext|>", "<|endoftext|>"]  # type: ignore[arg-type]
    theirs = transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(ordered))},
        merges=[tuple(pair) for pair in state["merges"]],
        model_max_length=77,
    )
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    given = ["A  Photo of\na RED cat", "it's 2026!", "赤い猫、2匹", "", "ǅ Ünïcode 🐱", "word " * 100]
    for text, row in zip(given, ours.encode_batch(given, max_len=77), strict=True):
        assert row == theirs(text, truncation=True, max_length=77)["input_ids"]
    assert (ours.max_len, ours.eos_id, ours.bos_id, ours.pad_id) == (
        77, theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id,
    )  # fmt: skip
