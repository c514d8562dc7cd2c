"""Published names of a latent diffusion U-Net's weights: those of diffusers, and of the first code (LDM).

Ours: `down.{level}.res.{i}`, `.attn.{i}`, `.downsample`; `mid`; `up.{level}`, coarsest first, with `.upsample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kiban.weights.names import Rule, Same, Split, both

RES_DIFFUSERS = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "time",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "skip",
}
RES_LDM = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
}


@dataclass(frozen=True)
class Pointwise(Same):
    """A linear layer's weight stored as a convolution with so many kernel axes, all of size 1. Reads a linear one too."""

    axes: int = 2

    def load(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor.flatten(1),)

    def save(self, *ours: Tensor) -> Tensor:
        return ours[0].reshape(*ours[0].shape, *[1] * self.axes)


def res_names(published: str, ours: str, parts: Mapping[str, str]) -> dict[str, Rule]:
    """A res-block. Only those that change the width have a layer on the skip."""
    table: dict[str, Rule] = {}
    for theirs, part in parts.items():
        table |= both(f"{published}.{theirs}", f"{ours}.{part}")
    return table


def transformer_names(published: str, ours: str, *, conv_projections: bool) -> dict[str, Rule]:
    """A spatial transformer, which both formats spell alike."""
    block, own = f"{published}.transformer_blocks.{{}}", f"{ours}.blocks.{{}}"
    table = both(f"{published}.norm", f"{ours}.norm")
    for layer in ("proj_in", "proj_out"):
        weight = Pointwise(f"{ours}.{layer}.weight", axes=2 if conv_projections else 0)
        table |= {f"{published}.{layer}.weight": weight, f"{published}.{layer}.bias": Same(f"{ours}.{layer}.bias")}
    for theirs, part in (("attn1", "attn"), ("attn2", "cross")):
        for name in "qkv":
            table[f"{block}.{theirs}.to_{name}.weight"] = Same(f"{own}.{part}.{name}.weight")
        table |= both(f"{block}.{theirs}.to_out.0", f"{own}.{part}.o")
    for part in ("weight", "bias"):
        # One layer makes the value and, behind it, the gate.
        table[f"{block}.ff.net.0.proj.{part}"] = Split((f"{own}.ffn.up.{part}", f"{own}.ffn.gate.{part}"))
    table |= both(f"{block}.ff.net.2", f"{own}.ffn.down")
    for norm in ("norm1", "norm2", "norm3"):
        table |= both(f"{block}.{norm}", f"{own}.{norm}")
    return table


def embedder_names(published: tuple[str, str], ours: str) -> dict[str, Rule]:
    """Both layers of an embedder of a number."""
    return {**both(published[0], f"{ours}.up"), **both(published[1], f"{ours}.out")}


def unet_diffusers_names(*, conv_projections: bool, added: bool) -> dict[str, Rule]:
    """UNet2DConditionModel. added: it embeds the pooled text and sizes."""
    table = {
        **both("conv_in", "conv_in"),
        **embedder_names(("time_embedding.linear_1", "time_embedding.linear_2"), "time"),
        **(embedder_names(("add_embedding.linear_1", "add_embedding.linear_2"), "added") if added else {}),
    }
    for theirs, ours in (("down_blocks.{}", "down.{}"), ("mid_block", "mid"), ("up_blocks.{}", "up.{}")):
        attn = "mid.attn" if ours == "mid" else f"{ours}.attn.{{}}"
        place = "mid_block.attentions.0" if ours == "mid" else f"{theirs}.attentions.{{}}"
        table |= res_names(f"{theirs}.resnets.{{}}", f"{ours}.res.{{}}", RES_DIFFUSERS)
        table |= transformer_names(place, attn, conv_projections=conv_projections)
    return {
        **table,
        **both("down_blocks.{}.downsamplers.0.conv", "down.{}.downsample"),
        **both("up_blocks.{}.upsamplers.0.conv", "up.{}.upsample.conv"),
        **both("conv_norm_out", "norm_out"),
        **both("conv_out", "conv_out"),
    }


def unet_ldm_names(
    depths: Sequence[int], *, num_res_blocks: int, conv_projections: bool, added: bool
) -> dict[str, Rule]:
    """The U-Net of the LDM and SDXL code, without the prefix `model.diffusion_model.`. depths: as in the configuration.

    It numbers res-blocks, with what follows them, through all levels; steps down have numbers of their own.
    """
    table = {
        **both("input_blocks.0.0", "conv_in"),
        **embedder_names(("time_embed.0", "time_embed.2"), "time"),
        **(embedder_names(("label_emb.0.0", "label_emb.0.2"), "added") if added else {}),
        **res_names("middle_block.0", "mid.res.0", RES_LDM),
        **transformer_names("middle_block.1", "mid.attn", conv_projections=conv_projections),
        **res_names("middle_block.2", "mid.res.1", RES_LDM),
        **both("out.0", "norm_out"),
        **both("out.2", "conv_out"),
    }
    number, last = 1, len(depths) - 1
    for level, depth in enumerate(depths):
        for i in range(num_res_blocks):
            table |= res_names(f"input_blocks.{number}.0", f"down.{level}.res.{i}", RES_LDM)
            if depth:
                place, ours = f"input_blocks.{number}.1", f"down.{level}.attn.{i}"
                table |= transformer_names(place, ours, conv_projections=conv_projections)
            number += 1
        if level < last:
            table |= both(f"input_blocks.{number}.0.op", f"down.{level}.downsample")
            number += 1
    number = 0
    for level, depth in enumerate(reversed(depths)):
        for i in range(num_res_blocks + 1):
            table |= res_names(f"output_blocks.{number}.0", f"up.{level}.res.{i}", RES_LDM)
            if depth:
                place, ours = f"output_blocks.{number}.1", f"up.{level}.attn.{i}"
                table |= transformer_names(place, ours, conv_projections=conv_projections)
            number += 1
        if level < last:
            place = f"output_blocks.{number - 1}.{2 if depth else 1}.conv"
            table |= both(place, f"up.{level}.upsample.conv")
    return table
