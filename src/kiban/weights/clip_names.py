"""Names of CLIP's weights: Hugging Face's, and OpenAI's, which open_clip keeps.

OpenAI packs queries, keys and values, and stores projections as what stands to the right of x; Hugging Face does neither.
Ours are those of `families/clip.py`, without a prefix for each tower.
"""

from __future__ import annotations

from kiban.weights.names import SKIP, NameTable, Rule, Same, Split, Transposed, both, prefixed


def _hf_blocks() -> dict[str, Rule]:
    layer, block = "encoder.layers.{}", "blocks.{}"
    table: dict[str, Rule] = {}
    for theirs, mine in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o")):
        table |= both(f"{layer}.self_attn.{theirs}", f"{block}.attn.{mine}")
    for theirs, mine in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("mlp.fc1", "ffn.up")):
        table |= both(f"{layer}.{theirs}", f"{block}.{mine}")
    return table | both(f"{layer}.mlp.fc2", f"{block}.ffn.down")


def _bare(table: NameTable, prefix: str) -> dict[str, Rule]:
    """The table behind a prefix; files that lack the prefix are read too."""
    return {name: _with_alias(rule, name.removeprefix(prefix)) for name, rule in prefixed(table, prefix, "").items()}


def _with_alias(rule: Rule, alias: str) -> Rule:
    return type(rule)(**{**rule.__dict__, "aliases": (*rule.aliases, alias)})


def hf_text(*, projected: bool) -> dict[str, Rule]:
    """CLIPTextModel, or CLIPTextModelWithProjection if projected. transformers 5 leaves `text_model.` out of the first."""
    table: dict[str, Rule] = {
        "embeddings.token_embedding.weight": Same("embed.weight"),
        "embeddings.position_embedding.weight": Same("position.weight"),
        "embeddings.position_ids": SKIP,
        **_hf_blocks(),
        **both("final_layer_norm", "norm"),
    }
    projection: dict[str, Rule] = {"text_projection.weight": Same("projection.weight")} if projected else {}
    return {**_bare(table, "text_model."), **projection}


def hf_vision() -> dict[str, Rule]:
    """CLIPVisionModelWithProjection."""
    table: dict[str, Rule] = {
        "embeddings.class_embedding": Same("cls"),
        "embeddings.patch_embedding.weight": Same("patches.conv.weight"),
        "embeddings.position_embedding.weight": Same("position.weight"),
        "embeddings.position_ids": SKIP,
        **both("pre_layrnorm", "norm_in"),  # sic
        **_hf_blocks(),
        **both("post_layernorm", "norm_out"),
    }
    return {**prefixed(table, "vision_model.", ""), "visual_projection.weight": Same("projection.weight")}


def hf() -> NameTable:
    """CLIPModel."""
    return {
        **prefixed(hf_text(projected=True), "", "text."),
        **prefixed(hf_vision(), "", "vision."),
        "logit_scale": Same("logit_scale"),
    }


def _openai_blocks() -> dict[str, Rule]:
    layer, block = "transformer.resblocks.{}", "blocks.{}"
    table: dict[str, Rule] = {
        f"{layer}.attn.in_proj_{part}": Split(tuple(f"{block}.attn.{name}.{part}" for name in "qkv"))
        for part in ("weight", "bias")
    }
    for theirs, mine in (
        ("attn.out_proj", "attn.o"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("mlp.c_fc", "ffn.up"),
        ("mlp.c_proj", "ffn.down"),
    ):
        table |= both(f"{layer}.{theirs}", f"{block}.{mine}")
    return table


def openai_text(*, projected: bool) -> dict[str, Rule]:
    """The text transformer, at the top level of the file; open_clip's models with a tower of another kind say `text.`."""
    table: dict[str, Rule] = {
        "token_embedding.weight": Same("embed.weight"),
        "positional_embedding": Same("position.weight"),
        **_openai_blocks(),
        **both("ln_final", "norm"),
        "attn_mask": SKIP,
        "text_projection": Transposed("projection.weight") if projected else SKIP,
    }
    return {name: _with_alias(rule, f"text.{name}") for name, rule in table.items()}


def openai_vit() -> dict[str, Rule]:
    """`visual` where it is a transformer."""
    table: dict[str, Rule] = {
        "class_embedding": Same("cls"),
        "conv1.weight": Same("patches.conv.weight"),
        "positional_embedding": Same("position.weight"),
        **both("ln_pre", "norm_in"),
        **_openai_blocks(),
        **both("ln_post", "norm_out"),
        "proj": Transposed("projection.weight"),
    }
    return prefixed(table, "visual.", "")


def openai_resnet() -> dict[str, Rule]:
    """`visual` where it is a ResNet."""
    table: dict[str, Rule] = {"attnpool.positional_embedding": Same("pool.position.weight")}
    for theirs, mine in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("c_proj", "o")):
        table |= both(f"attnpool.{theirs}", f"pool.{mine}")
    for number in range(3):
        table |= _conv_norm(f"conv{number + 1}", f"bn{number + 1}", f"stem.{number}")
    for stage in range(4):
        layer, block = f"layer{stage + 1}.{{}}", f"stages.{stage}.{{}}"
        for number, part in enumerate(("reduce", "middle", "expand"), 1):
            table |= _conv_norm(f"{layer}.conv{number}", f"{layer}.bn{number}", f"{block}.{part}")
        table |= _conv_norm(f"{layer}.downsample.0", f"{layer}.downsample.1", f"{block}.shortcut")
    return prefixed(table, "visual.", "")


def _conv_norm(conv: str, norm: str, ours: str) -> dict[str, Rule]:
    statistics = ("running_mean", "running_var")
    return {
        f"{conv}.weight": Same(f"{ours}.conv.weight"),
        **both(norm, f"{ours}.norm"),
        **{f"{norm}.{part}": Same(f"{ours}.norm.{part}") for part in statistics},
        f"{norm}.num_batches_tracked": Same(f"{ours}.norm.num_batches_tracked", optional=True),
    }


def openai(*, resnet: bool) -> NameTable:
    """A whole model of OpenAI or open_clip. Files made from TorchScript hold three sizes too."""
    return {
        **prefixed(openai_text(projected=True), "", "text."),
        **prefixed(openai_resnet() if resnet else openai_vit(), "", "vision."),
        "logit_scale": Same("logit_scale"),
        **dict.fromkeys(("input_resolution", "context_length", "vocab_size"), SKIP),
    }
