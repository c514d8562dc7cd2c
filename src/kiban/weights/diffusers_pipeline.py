"""A whole latent diffusion pipeline: the folder that diffusers keeps, and the one file of the first code (LDM).

Settings are the fields of `families/stable_diffusion.py`'s configuration as plain values, parts included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiban.errors import FormatError
from kiban.weights import clip_config, clip_names, diffusers_config
from kiban.weights.names import SKIP, NameTable, Rule, prefixed
from kiban.weights.unet_names import unet_diffusers_names, unet_ldm_names
from kiban.weights.vae_names import vae_diffusers_names, vae_ldm_names

Settings = dict[str, Any]
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Component:
    """One folder of a pipeline: its class, its config.json, the file of its weights, and their names.

    part: the submodule of the whole that it holds. names: its name table, ours without that prefix.
    """

    folder: str
    library: str
    architecture: str
    weights: str
    part: str
    config: dict[str, Any]
    names: NameTable


def components(c: Settings) -> tuple[Component, ...]:
    """The folders with weights: `unet`, `vae`, and `text_encoder`, `text_encoder_2` (the one with a projection)."""
    unet = Component(
        folder="unet",
        library="diffusers",
        architecture="UNet2DConditionModel",
        weights=DIFFUSERS_WEIGHTS,
        part="unet",
        config=diffusers_config.unet_to_hf(c["unet"], sample_size=c["image_size"] // _factor(c["vae"])),
        names=unet_diffusers_names(conv_projections=c["unet"]["conv_projections"], added=bool(c["unet"]["added_dim"])),
    )
    vae = Component(
        folder="vae",
        library="diffusers",
        architecture="AutoencoderKL",
        weights=DIFFUSERS_WEIGHTS,
        part="vae",
        config=diffusers_config.vae_to_hf(c["vae"], sample_size=c["image_size"]),
        names=vae_diffusers_names(),
    )
    return (unet, vae, *(_tower(text, number) for number, text in enumerate(c["texts"])))


def _tower(text: Settings, number: int) -> Component:
    projected = text["embed_dim"] is not None
    values = clip_config.text_to_hf(text)
    return Component(
        folder="text_encoder_2" if projected else "text_encoder",
        library="transformers",
        architecture=values["architectures"][0],
        weights=TRANSFORMERS_WEIGHTS,
        part=f"texts.{number}",
        config=values,
        names=clip_names.hf_text(projected=projected),
    )


def hf_names(c: Settings) -> NameTable:
    """All parts; a published name is the folder, a dot, and the name in its file."""
    table: dict[str, Rule] = {}
    for component in components(c):
        table |= prefixed(component.names, f"{component.folder}.", f"{component.part}.")
    return table


def ldm_names(c: Settings) -> NameTable:
    """All parts in one file; what else such a file may hold (`model_ema.`, `betas`) is not in the table."""
    u = c["unet"]
    unet = unet_ldm_names(
        u["depths"],
        num_res_blocks=u["num_res_blocks"],
        conv_projections=u["conv_projections"],
        added=bool(u["added_dim"]),
    )
    table = {
        **prefixed(unet, "model.diffusion_model.", "unet."),
        **prefixed(vae_ldm_names(len(c["vae"]["channels"])), "first_stage_model.", "vae."),
    }
    for number, text in enumerate(c["texts"]):
        place = f"conditioner.embedders.{number}" if u["added_dim"] else "cond_stage_model"
        if text["quick_gelu"]:  # OpenAI's weights, which the first code took from transformers
            names, place = clip_names.hf_text(projected=text["embed_dim"] is not None), f"{place}.transformer."
        else:
            names, place = _open_clip_names(text), f"{place}.model."
        table |= prefixed(names, place, f"texts.{number}.")
    return table


def _open_clip_names(text: Settings) -> dict[str, Rule]:
    """open_clip's. A tower without projection (SD 2) leaves out its last layer, which the file holds nevertheless."""
    table = clip_names.openai_text(projected=text["embed_dim"] is not None)
    block = "transformer.resblocks.{}"
    unused = [name.replace(block, block.format(text["num_layers"])) for name in table if name.startswith(block)]
    skipped = [*unused, "logit_scale"] if text["embed_dim"] is None else ["logit_scale"]
    return {**dict.fromkeys(skipped, SKIP), **table}  # the first rule that fits a name decides


def from_hf(values: Mapping[str, Any]) -> Settings:
    """values: every JSON file of a pipeline under its path in the folder, such as `unet/config.json`.

    Raises FormatError if one is missing or makes another model.
    """
    needed = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    towers = [path for path in ("text_encoder/config.json", "text_encoder_2/config.json") if path in values]
    lacking = [path for path in needed if path not in values] + ([] if towers else ["text_encoder/config.json"])
    if lacking:
        raise FormatError(lacking[0], why="is missing from the pipeline", hint="fetch the folder again")
    unet, vae, schedule = (values[path] for path in needed)
    vae_settings, unet_settings = diffusers_config.vae_from_hf(vae), diffusers_config.unet_from_hf(unet)
    sample = unet.get("sample_size") or 64
    wide = unet_settings["added_dim"] > 0
    return {
        "unet": unet_settings,
        "vae": vae_settings,
        "texts": [_text_from_hf(values[path]) for path in towers],
        "text_skip": int(wide),  # SDXL reads the states before the last layer, and does not norm them
        "text_norm": not wide,
        "image_size": int(sample if isinstance(sample, int) else max(sample)) * _factor(vae_settings),
        **diffusers_config.schedule_from_hf(schedule),
    }


def _text_from_hf(values: Mapping[str, Any]) -> Settings:
    projected = "CLIPTextModelWithProjection" in (values.get("architectures") or ())
    return clip_config.text_from_hf(values, projected=projected)


def to_hf(c: Settings, *, pipeline: str, num_sizes: int) -> dict[str, Any]:
    """Every JSON file of a pipeline that diffusers opens, under its path, but for the tokenizers' own.

    pipeline: its class. num_sizes: how many sizes the U-Net is told. Raises FormatError for text states that none takes.
    """
    wide = c["unet"]["added_dim"] > 0
    if (c["text_skip"], c["text_norm"]) != ((1, False) if wide else (0, True)):
        why = f"text_skip={c['text_skip']} and text_norm={c['text_norm']} are not what it does with these towers"
        raise FormatError(pipeline, why=why)
    parts = components(c)
    classes = {component.folder: (component.library, component.architecture) for component in parts}
    return {
        "model_index.json": _index(pipeline, classes, wide=wide, scored=num_sizes == 5),
        "scheduler/scheduler_config.json": diffusers_config.schedule_to_hf(c),
        **{f"{component.folder}/config.json": component.config for component in parts},
    }


def _index(pipeline: str, parts: Mapping[str, tuple[str, str]], *, wide: bool, scored: bool) -> dict[str, Any]:
    """model_index.json of a pipeline. parts: (library, class) of each folder that holds weights.

    wide: of SDXL's kind; scored: it is told how pleasing the image should be, as SDXL's refiner is.
    """
    empty = [None, None]
    texts = [folder for folder in parts if folder.startswith("text_encoder")]
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers_config.VERSION,
        **{folder: list(part) for folder, part in parts.items()},
        **{folder.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"] for folder in texts},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "feature_extractor": empty,
    }
    if not wide:
        return {**index, "safety_checker": empty, "requires_safety_checker": False}
    alone = {} if len(texts) == 2 else {"text_encoder": empty, "tokenizer": empty}
    score = {"requires_aesthetics_score": True} if scored else {}
    return {**index, **alone, **score, "force_zeros_for_empty_prompt": not scored}


def _factor(vae: Settings) -> int:
    """Pixels per latent position, along one side."""
    return int(2 ** (len(vae["channels"]) - 1))
