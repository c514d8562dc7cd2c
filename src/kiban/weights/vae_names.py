"""Published names of a latent diffusion autoencoder's weights: those of diffusers, and of the first code (LDM)."""

from __future__ import annotations

from kiban.weights.names import Rule, Same, both
from kiban.weights.unet_names import Pointwise, res_names

RES_DIFFUSERS = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "skip"}
RES_LDM = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "skip"}
OLD_DIFFUSERS = {"q": "query", "k": "key", "v": "value", "o": "proj_attn"}  # before version 0.15


def vae_diffusers_names() -> dict[str, Rule]:
    """AutoencoderKL. Its attention had other names once, which are read too."""
    table = {**both("quant_conv", "quant"), **both("post_quant_conv", "post_quant")}
    for half, step, own_step in (
        ("encoder", "downsamplers.0.conv", "downsample.conv"),
        ("decoder", "upsamplers.0.conv", "upsample.conv"),
    ):
        levels = f"{half}.{'down' if half == 'encoder' else 'up'}_blocks.{{}}"
        table |= res_names(f"{levels}.resnets.{{}}", f"{half}.levels.{{}}.res.{{}}", RES_DIFFUSERS)
        table |= both(f"{levels}.{step}", f"{half}.levels.{{}}.{own_step}")
        table |= res_names(f"{half}.mid_block.resnets.{{}}", f"{half}.mid.res.{{}}", RES_DIFFUSERS)
        place, ours = f"{half}.mid_block.attentions.0", f"{half}.mid.attn"
        table |= both(f"{place}.group_norm", f"{ours}.norm")
        for name, old in OLD_DIFFUSERS.items():
            new = "to_out.0" if name == "o" else f"to_{name}"
            own, published = f"{ours}.attn.{name}", f"{place}.{new}"
            weight = Pointwise(f"{own}.weight", aliases=(f"{place}.{old}.weight",), axes=0)
            table[f"{published}.weight"] = weight
            table[f"{published}.bias"] = Same(f"{own}.bias", aliases=(f"{place}.{old}.bias",))
        for theirs, own in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            table |= both(f"{half}.{theirs}", f"{half}.{own}")
    return table


def vae_ldm_names(num_levels: int) -> dict[str, Rule]:
    """The autoencoder of the LDM code, without the prefix `first_stage_model.`.

    Its attention is made of 1x1 convolutions, and it counts the levels of the decoder from the finest.
    """
    table = {**both("quant_conv", "quant"), **both("post_quant_conv", "post_quant")}
    table |= res_names("encoder.down.{}.block.{}", "encoder.levels.{}.res.{}", RES_LDM)
    table |= both("encoder.down.{}.downsample.conv", "encoder.levels.{}.downsample.conv")
    for level in range(num_levels):
        theirs, ours = f"decoder.up.{num_levels - 1 - level}", f"decoder.levels.{level}"
        table |= res_names(f"{theirs}.block.{{}}", f"{ours}.res.{{}}", RES_LDM)
        table |= both(f"{theirs}.upsample.conv", f"{ours}.upsample.conv")
    for half in ("encoder", "decoder"):
        for i in range(2):
            table |= res_names(f"{half}.mid.block_{i + 1}", f"{half}.mid.res.{i}", RES_LDM)
        place, ours = f"{half}.mid.attn_1", f"{half}.mid.attn"
        table |= both(f"{place}.norm", f"{ours}.norm")
        for new, name in (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "o")):
            table[f"{place}.{new}.weight"] = Pointwise(f"{ours}.attn.{name}.weight")
            table[f"{place}.{new}.bias"] = Same(f"{ours}.attn.{name}.bias")
        for layer in ("conv_in", "norm_out", "conv_out"):
            table |= both(f"{half}.{layer}", f"{half}.{layer}")
    return table
