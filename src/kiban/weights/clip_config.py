"""CLIP's configuration as Hugging Face (config.json) and open_clip (open_clip_config.json) write it, to ours and back.

Ours are the fields of `families/clip.py`'s configurations: {"text": {...}, "vision": {...}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiban.errors import FormatError
from kiban.inputs.image import CLIP_MEAN, CLIP_STD

Settings = dict[str, Any]
LARGEST = 2  # the eos_token_id by which files from before 2023 say that the largest id ends a text
EPS = 1e-5

_SIZES = {
    "num_layers": ("num_hidden_layers", 12),
    "dim": ("hidden_size", 512),
    "num_heads": ("num_attention_heads", 8),
    "ffn_dim": ("intermediate_size", 2048),
}
_TEXT = {**_SIZES, "vocab_size": ("vocab_size", 49408), "max_seq_len": ("max_position_embeddings", 77)}
_VISION = {
    **_SIZES,
    "dim": ("hidden_size", 768),
    "num_heads": ("num_attention_heads", 12),
    "ffn_dim": ("intermediate_size", 3072),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
}


def from_hf(values: Mapping[str, Any]) -> Settings:
    """config.json of a CLIPModel; what it leaves out has transformers' default. Raises FormatError."""
    vision = _part(values, "vision_config")
    if vision.get("num_channels", 3) != 3:
        raise FormatError("config.json", field="num_channels", why="only pictures of three channels are known")
    embed_dim = int(values.get("projection_dim", 512))
    return {
        "text": {**text_from_hf(_part(values, "text_config"), projected=True), "embed_dim": embed_dim},
        "vision": {**_tower(vision, _VISION), "embed_dim": embed_dim},
    }


def text_from_hf(values: Mapping[str, Any], *, projected: bool) -> Settings:
    """config.json of a CLIPTextModel, or of a CLIPTextModelWithProjection. Raises FormatError."""
    eos = values.get("eos_token_id", 49407)
    if not isinstance(eos, int):
        raise FormatError("config.json", field="eos_token_id", why=f"{eos!r} is not the id of one token")
    return {
        **_tower(values, _TEXT),
        "embed_dim": int(values.get("projection_dim", 512)) if projected else None,
        "eos_id": None if eos == LARGEST else eos,
    }


def to_hf(settings: Settings) -> dict[str, Any]:
    """config.json that transformers reads. Raises FormatError for a ResNet, for which it has no class."""
    vision = settings["vision"]
    if "patch_size" not in vision:
        hint = "keep it in open_clip's form: kiban.zoo.open_clip.save_open_clip"
        raise FormatError("CLIP", field="vision", why="a ResNet has no class at Hugging Face", hint=hint)
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": vision["embed_dim"],
        "logit_scale_init_value": 2.6592,
        "text_config": _no_class(text_to_hf(settings["text"])),
        "vision_config": {"model_type": "clip_vision_model", **_tower_to_hf(vision, _VISION)},
    }


def text_to_hf(text: Settings) -> dict[str, Any]:
    """config.json of a text tower by itself: a CLIPTextModel, with projection if it has one."""
    projected = text["embed_dim"] is not None
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        **_tower_to_hf(text, _TEXT),
        "eos_token_id": LARGEST if text["eos_id"] is None else text["eos_id"],
        # transformers' defaults are tokens of the published vocabulary, and no model looks at them.
        "bos_token_id": None,
        "pad_token_id": None,
    }


def _no_class(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "architectures"}


def _part(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tower's values; `..._config_dict`, in files of early versions, goes first."""
    return {**(values.get(name) or {}), **(values.get(f"{name}_dict") or {})}


def _tower(values: Mapping[str, Any], sizes: Mapping[str, tuple[str, int]]) -> Settings:
    kind = values.get("hidden_act", "quick_gelu")
    if kind not in ("quick_gelu", "gelu"):
        raise FormatError("config.json", field="hidden_act", why=f"{kind!r} is neither quick_gelu nor gelu")
    found: Settings = {ours: int(values.get(theirs, default)) for ours, (theirs, default) in sizes.items()}
    return {**found, "norm_eps": float(values.get("layer_norm_eps", EPS)), "quick_gelu": kind == "quick_gelu"}


def _tower_to_hf(settings: Settings, sizes: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    projection = {} if settings["embed_dim"] is None else {"projection_dim": settings["embed_dim"]}
    return {
        **{theirs: settings[ours] for ours, (theirs, _) in sizes.items()},
        **projection,
        "layer_norm_eps": settings["norm_eps"],
        "hidden_act": "quick_gelu" if settings["quick_gelu"] else "gelu",
        "attention_dropout": 0.0,
    }


# What changes nothing in a model that is opened, or what it is like in the models that we have.
_HARMLESS = frozenset(
    "hf_tokenizer_name tokenizer_kwargs tokenizer_mode output_tokens patch_dropout attn_pooler_queries attn_pooler_heads"
    " pad_id eos_id timm_pool timm_proj timm_drop".split()
)
_USUAL = {"proj_type": "linear", "pos_embed_type": "learnable", "block_type": "default"}


def from_open_clip(values: Mapping[str, Any]) -> Settings:
    """The `model_cfg` of open_clip_config.json. Raises FormatError for towers that are not CLIP's."""
    vision, text = dict(values["vision_cfg"]), dict(values["text_cfg"])
    quick, embed_dim = bool(values.get("quick_gelu", False)), int(values["embed_dim"])
    return {
        "text": {**_open_text(text), "embed_dim": embed_dim, "quick_gelu": quick},
        "vision": {
            **(_open_resnet(vision) if isinstance(vision.get("layers"), list) else _open_vit(vision, quick)),
            "embed_dim": embed_dim,
        },
    }


def _open_text(text: dict[str, Any]) -> Settings:
    pool, eos = text.pop("pool_type", "argmax"), text.get("eos_id")
    if pool not in ("argmax", "eos"):
        raise FormatError("open_clip_config.json", field="pool_type", why=f"{pool!r} is neither argmax nor eos")
    dim = int(text.pop("width", 512))
    found: Settings = {
        "num_layers": int(text.pop("layers", 12)),
        "dim": dim,
        "num_heads": int(text.pop("heads", 8)),
        "ffn_dim": int(dim * float(text.pop("mlp_ratio", 4.0))),
        "vocab_size": int(text.pop("vocab_size", 49408)),
        "max_seq_len": int(text.pop("context_length", 77)),
        "eos_id": int(eos) if pool == "eos" and eos is not None else None,
    }
    _nothing_else(text)
    return found


def _open_vit(vision: dict[str, Any], quick: bool) -> Settings:
    dim = int(vision.pop("width", 768))
    found: Settings = {
        "num_layers": int(vision.pop("layers", 12)),
        "dim": dim,
        "num_heads": dim // int(vision.pop("head_width", 64)),
        "ffn_dim": int(dim * float(vision.pop("mlp_ratio", 4.0))),
        "image_size": int(vision.pop("image_size", 224)),
        "patch_size": int(vision.pop("patch_size", 16)),
        "quick_gelu": quick,
    }
    if vision.pop("pool_type", "tok") != "tok":
        raise FormatError("open_clip_config.json", field="pool_type", why="only the class token's state is known")
    _nothing_else(vision)
    return found


def _open_resnet(vision: dict[str, Any]) -> Settings:
    width = int(vision.pop("width", 64))
    found: Settings = {
        "num_blocks": tuple(int(count) for count in vision.pop("layers")),
        "width": width,
        "num_heads": width * 32 // int(vision.pop("head_width", 64)),
        "image_size": int(vision.pop("image_size", 224)),
    }
    vision.pop("patch_size", None)
    _nothing_else(vision)
    return found


def _nothing_else(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value and name not in _HARMLESS and _USUAL.get(name) != value:
            raise FormatError("open_clip_config.json", field=name, why=f"{value!r} makes another model than CLIP")


def to_open_clip(settings: Settings) -> dict[str, Any]:
    """A `model_cfg` that open_clip reads. Raises FormatError for what it cannot say."""
    text, vision = settings["text"], settings["vision"]
    for tower in (text, vision):
        if tower.get("norm_eps", EPS) != EPS or tower.get("quick_gelu", text["quick_gelu"]) != text["quick_gelu"]:
            why = f"open_clip has norm_eps={EPS} and one form of GELU in both towers"
            raise FormatError("CLIP", field="norm_eps", why=why, hint="write a Hugging Face folder")
    # Where the end has the largest id, files say nothing of it, as all released ones do.
    last = text["eos_id"] in (None, text["vocab_size"] - 1)
    return {
        "embed_dim": text["embed_dim"],
        "quick_gelu": text["quick_gelu"],
        "vision_cfg": _vision_to_open(vision),
        "text_cfg": {
            "context_length": text["max_seq_len"],
            "vocab_size": text["vocab_size"],
            "width": text["dim"],
            "heads": text["num_heads"],
            "layers": text["num_layers"],
            "mlp_ratio": _ratio(text),
            **({} if last else {"pool_type": "eos", "eos_id": text["eos_id"]}),
        },
    }


def _vision_to_open(vision: Settings) -> dict[str, Any]:
    if "num_blocks" in vision:
        return {
            "image_size": vision["image_size"],
            "layers": list(vision["num_blocks"]),
            "width": vision["width"],
            "head_width": vision["width"] * 32 // vision["num_heads"],
            "patch_size": None,
        }
    return {
        "image_size": vision["image_size"],
        "layers": vision["num_layers"],
        "width": vision["dim"],
        "head_width": vision["dim"] // vision["num_heads"],
        "patch_size": vision["patch_size"],
        "mlp_ratio": _ratio(vision),
    }


def _ratio(tower: Settings) -> float:
    """A number that gives ffn_dim when the width times it is rounded down."""
    whole, left = divmod(tower["ffn_dim"], tower["dim"])
    return float(whole) if not left else float((tower["ffn_dim"] + 0.5) / tower["dim"])


def preprocessor(size: int) -> dict[str, Any]:
    """preprocessor_config.json of a model that reads pictures as `kiban.inputs.image.clip_pixels` makes them."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
