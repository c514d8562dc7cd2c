"""Configurations of a diffusers pipeline's parts, to our settings and back. Ours are the fields of the configs in `nn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kiban.errors import FormatError

Settings = dict[str, Any]
VERSION = "0.27.0"  # pipelines do not believe the sample_size of files that say less than 0.9
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}

# Settings that make another model, with the values under which they do not; absent counts as the first.
_UNET_USUAL: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_VAE_USUAL: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_SCHEDULER_USUAL: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("scaled_linear",),
    "rescale_betas_zero_snr": (False,),
    "trained_betas": (None,),
}


def unet_from_hf(values: Mapping[str, Any], *, source: str = "unet/config.json") -> Settings:
    """config.json of a UNet2DConditionModel. Raises FormatError for what makes another model."""
    _check(values, _UNET_USUAL, source)
    channels = _per_level(values, "block_out_channels", (320, 640, 1280, 1280), 0, source)
    count = len(channels)
    layers = _per_level(values, "transformer_layers_per_block", 1, count, source)
    default = ["CrossAttnDownBlock2D"] * (count - 1) + ["DownBlock2D"]
    down = list(values.get("down_block_types", default))
    up = list(values.get("up_block_types", [_up(kind) for kind in reversed(down)]))
    if set(down) - {"CrossAttnDownBlock2D", "DownBlock2D"} or up != [_up(kind) for kind in reversed(down)]:
        raise FormatError(source, field="down_block_types", why=f"{down} with {up} on the way up is unknown")
    if len(down) != count:
        raise FormatError(source, field="down_block_types", why=f"needs {count} entries, one per level")
    depths = tuple(depth if kind.startswith("Cross") else 0 for kind, depth in zip(down, layers, strict=True))
    middle = next((depth for depth in reversed(depths) if depth), 0)
    if layers[-1] != middle:
        why = f"gives the middle {layers[-1]} blocks, but the deepest level with any {middle}"
        raise FormatError(source, field="transformer_layers_per_block", why=why)
    added = values.get("addition_embed_type") == "text_time"
    return {
        "channels": channels,
        "depths": depths,
        # sic: this setting holds the number of heads
        "num_heads": _per_level(values, "attention_head_dim", 8, count, source),
        "context_dim": _only(_per_level(values, "cross_attention_dim", 1280, count, source), source),
        "in_channels": int(values.get("in_channels", 4)),
        "out_channels": int(values.get("out_channels", 4)),
        "num_res_blocks": _only(_per_level(values, "layers_per_block", 2, count, source), source),
        "num_groups": int(values.get("norm_num_groups", 32)),
        "norm_eps": float(values.get("norm_eps", 1e-5)),
        "added_dim": int(values["projection_class_embeddings_input_dim"]) if added else 0,
        "size_dim": int(values["addition_time_embed_dim"]) if added else 256,
        "conv_projections": not values.get("use_linear_projection", False),
    }


def unet_to_hf(unet: Settings, *, sample_size: int) -> dict[str, Any]:
    """config.json of a UNet2DConditionModel. sample_size: side of the usual latents, from which pipelines take theirs."""
    depths = unet["depths"]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    middle = next(depth for depth in reversed(depths) if depth)
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": unet["size_dim"],
        "projection_class_embeddings_input_dim": unet["added_dim"],
    }
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "sample_size": sample_size,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [_up(kind) for kind in reversed(down)],
        "block_out_channels": list(unet["channels"]),
        "layers_per_block": unet["num_res_blocks"],
        # The middle takes the last entry; a level without attention ignores its own.
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle],
        "attention_head_dim": list(unet["num_heads"]),
        "cross_attention_dim": unet["context_dim"],
        "norm_num_groups": unet["num_groups"],
        "norm_eps": unet["norm_eps"],
        "use_linear_projection": not unet["conv_projections"],
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        **(added if unet["added_dim"] else {}),
    }


def vae_from_hf(values: Mapping[str, Any], *, source: str = "vae/config.json") -> Settings:
    """config.json of an AutoencoderKL. Raises FormatError for what makes another model."""
    _check(values, _VAE_USUAL, source)
    channels = _per_level(values, "block_out_channels", (64,), 0, source)
    for side, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(values.get(side, [kind])) != [kind] * len(channels):
            raise FormatError(source, field=side, why=f"must be {kind} on every one of {len(channels)} levels")
    images = int(values.get("in_channels", 3))
    if int(values.get("out_channels", 3)) != images:
        raise FormatError(source, field="out_channels", why=f"differs from the {images} that it encodes")
    return {
        "channels": channels,
        "image_channels": images,
        "latent_channels": int(values.get("latent_channels", 4)),
        "num_res_blocks": int(values.get("layers_per_block", 1)),
        "num_groups": int(values.get("norm_num_groups", 32)),
        "latent_scale": float(values.get("scaling_factor", 0.18215)),
    }


def vae_to_hf(vae: Settings, *, sample_size: int) -> dict[str, Any]:
    """config.json of an AutoencoderKL. sample_size: side of the usual image in pixels."""
    if vae["norm_eps"] != 1e-6:
        raise FormatError("AutoencoderKL", field="norm_eps", why=f"is 1e-6 there, not {vae['norm_eps']}")
    levels = len(vae["channels"])
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "sample_size": sample_size,
        "in_channels": vae["image_channels"],
        "out_channels": vae["image_channels"],
        "latent_channels": vae["latent_channels"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(vae["channels"]),
        "layers_per_block": vae["num_res_blocks"],
        "norm_num_groups": vae["num_groups"],
        "act_fn": "silu",
        "scaling_factor": vae["latent_scale"],
    }


def schedule_from_hf(values: Mapping[str, Any], *, source: str = "scheduler/scheduler_config.json") -> Settings:
    """num_timesteps, beta_start, beta_end and prediction of a scheduler. Raises FormatError for another noise schedule."""
    values = {"beta_schedule": "linear", **values}  # what diffusers takes it to be where it is not said
    _check(values, _SCHEDULER_USUAL, source)
    kind = values.get("prediction_type", "epsilon")
    ours = next((ours for ours, theirs in PREDICTIONS.items() if theirs == kind), None)
    if ours is None:
        raise FormatError(source, field="prediction_type", why=f"{kind!r} is unknown", hint="known: eps, v, x0")
    return {
        "num_timesteps": int(values.get("num_train_timesteps", 1000)),
        "beta_start": float(values["beta_start"]),
        "beta_end": float(values["beta_end"]),
        "prediction": ours,
    }


def schedule_to_hf(schedule: Settings) -> dict[str, Any]:
    """scheduler_config.json of a DDIMScheduler, which diffusers turns into any other one."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule["num_timesteps"],
        "beta_start": schedule["beta_start"],
        "beta_end": schedule["beta_end"],
        "beta_schedule": "scaled_linear",
        "prediction_type": PREDICTIONS[schedule["prediction"]],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "skip_prk_steps": True,
    }


def _check(values: Mapping[str, Any], usual: Mapping[str, tuple[Any, ...]], source: str) -> None:
    for name, allowed in usual.items():
        if values.get(name, allowed[0]) not in allowed:
            why = f"{values[name]!r} makes another model; only {allowed[-1]!r} is known"
            raise FormatError(source, field=name, why=why)


def _up(kind: str) -> str:
    return kind.replace("Down", "Up")


def _per_level(values: Mapping[str, Any], name: str, default: Any, count: int, source: str) -> tuple[int, ...]:
    """One number per level, from a list or one number for all; count 0: as many as the list has."""
    value = values.get(name, default)
    if isinstance(value, int):
        return (value,) * count
    if not isinstance(value, Sequence) or not all(type(n) is int for n in value) or (count and len(value) != count):
        raise FormatError(source, field=name, why=f"{value!r:.60} is not a whole number for each level")
    return tuple(value)


def _only(numbers: tuple[int, ...], source: str) -> int:
    if len(set(numbers)) != 1:
        raise FormatError(source, why=f"{numbers} differ between levels, which no published model does")
    return numbers[0]
