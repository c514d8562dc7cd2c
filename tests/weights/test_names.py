"""Name tables: every rule there and back, what a table does not know, and the rotary layouts against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kiban.errors import FormatError
from kiban.nn.positions import Rotary, rotate
from kiban.weights.names import (
    SKIP,
    NameTable,
    RopeHalves,
    Rule,
    Same,
    Skip,
    Split,
    Transposed,
    prefixed,
    to_ours,
    to_published,
)

QKV = ("blocks.{}.attn.q.weight", "blocks.{}.attn.k.weight", "blocks.{}.attn.v.weight")
TABLE: dict[str, Rule] = {
    "wte.weight": Same("embed.weight"),
    "h.{}.attn.c_attn.weight": Split(QKV, transposed=True),
    "h.{}.attn.c_attn.bias": Split(tuple(name.replace("weight", "bias") for name in QKV), transposed=True),
    "h.{}.mlp.c_fc.weight": Transposed("blocks.{}.ffn.up.weight"),
    "h.{}.rope.weight": RopeHalves("blocks.{}.rope.weight", num_heads=3),
    "h.{}.experts.{}.weight": Same("blocks.{}.experts.{}.weight"),
    "h.{}.packed": Split(("blocks.{}.first", "blocks.{}.second")),
    "h.{}.attn.bias": SKIP,
    "ln.weight": Same("norm.weight", aliases=("ln.gamma", "norm.{}.old")),
    "pooler.weight": Same("pooler.weight", optional=True),
}


def published() -> dict[str, Tensor]:
    """Random tensors for the table, for two blocks."""
    shapes = {"attn.c_attn.weight": (4, 18), "attn.c_attn.bias": (18,), "mlp.c_fc.weight": (4, 10), "packed": (6, 2)}
    shapes |= {"rope.weight": (12, 5), "experts.0.weight": (2, 2), "experts.11.weight": (2, 2)}
    shapes = {f"h.{layer}.{name}": shape for layer in (0, 10) for name, shape in shapes.items()}
    shapes |= {"wte.weight": (7, 4), "ln.weight": (4,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def wanted(*, without: str = " ") -> list[str]:
    """All names of ours."""
    names = [name for rule in TABLE.values() for name in rule.names if "experts" not in name and without not in name]
    names += ["blocks.{}.experts.0.weight", "blocks.{}.experts.11.weight"]
    return sorted({name.format(layer) for name in names for layer in (0, 10)})


def load(tensors: dict[str, Tensor], table: NameTable = TABLE) -> dict[str, Tensor]:
    return to_ours(table, tensors, wanted=wanted(), source="file")


def test_every_rule_loads_and_saves() -> None:
    theirs = published()
    ours = load(theirs)
    assert ours.keys() == set(wanted(without="pooler"))
    back = to_published(TABLE, ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    assert all(tensor.is_contiguous() for tensor in back.values())
    again = load(back)
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_a_split_takes_equal_parts_in_order() -> None:
    theirs = published()
    ours = load(theirs)
    for place, letter in enumerate("qkv"):
        part = slice(6 * place, 6 * place + 6)
        assert torch.equal(ours[f"blocks.10.attn.{letter}.weight"], theirs["h.10.attn.c_attn.weight"][:, part].T)
        assert torch.equal(ours[f"blocks.10.attn.{letter}.bias"], theirs["h.10.attn.c_attn.bias"][part])
    assert torch.equal(ours["blocks.0.second"], theirs["h.0.packed"][3:])
    assert torch.equal(ours["blocks.0.ffn.up.weight"], theirs["h.0.mlp.c_fc.weight"].T)


def test_layers_and_experts_keep_their_numbers() -> None:
    theirs = published()
    ours = load(theirs)
    assert torch.equal(ours["blocks.10.experts.11.weight"], theirs["h.10.experts.11.weight"])
    assert torch.equal(ours["blocks.0.experts.11.weight"], theirs["h.0.experts.11.weight"])


@pytest.mark.parametrize("alias", ["ln.gamma", "norm.3.old"])
def test_an_alias_is_read_and_never_written(alias: str) -> None:
    theirs = published()
    theirs[alias] = theirs.pop("ln.weight")
    ours = load(theirs)
    assert torch.equal(ours["norm.weight"], theirs[alias])
    assert alias not in to_published(TABLE, ours) and "ln.weight" in to_published(TABLE, ours)


def test_two_spellings_of_one_tensor_are_refused() -> None:
    theirs = published()
    theirs["ln.gamma"] = theirs["ln.weight"] + 1
    with pytest.raises(FormatError, match=r"'ln.gamma': stands twice.*norm\.weight"):
        load(theirs)


def test_what_is_skipped_is_neither_asked_for_nor_returned() -> None:
    theirs = published()
    ours = load({**theirs, "h.0.attn.bias": torch.ones(2)})
    assert ours.keys() == load(theirs).keys()


def test_an_optional_tensor_may_be_there_or_not() -> None:
    theirs = published()
    assert "pooler.weight" not in load(theirs)
    ours = load({**theirs, "pooler.weight": torch.ones(2)})
    assert torch.equal(ours["pooler.weight"], torch.ones(2))
    assert torch.equal(to_published(TABLE, ours)["pooler.weight"], torch.ones(2))


def test_an_optional_tensor_that_the_architecture_lacks_is_left_out() -> None:
    ours = to_ours(TABLE, {"pooler.weight": torch.ones(2)}, wanted=[], source="file")
    assert ours == {}


UNKNOWN = ["lm_head.weight", "xwte.weight", "wte.weightx", "h.a.attn.bias", "h..attn.bias", "h.-1.attn.bias"]
UNKNOWN += [
    "wteXweight",
    "h.0.attn.bias\n",
    "h.１.mlp.c_fc.weight",
    "h.１.attn.bias",
    "h.00.mlp.c_fc.weight",
    "h.11.mlp.c_fc.weight",
    "",
]


@pytest.mark.parametrize("name", UNKNOWN, ids=ascii)
def test_a_name_that_is_not_in_the_table_or_not_in_the_architecture_is_listed(name: str) -> None:
    with pytest.raises(FormatError, match="file: weights do not match the architecture; unknown: '"):
        load({**published(), name: torch.ones(4, 10)})


def test_the_names_of_a_hostile_file_cannot_fill_or_control_the_terminal() -> None:
    with pytest.raises(FormatError) as caught:
        load({"\x1b[2J" + "x" * 10_000: torch.ones(1)})
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1500


def test_missing_names_are_listed_as_ours() -> None:
    theirs = published()
    del theirs["wte.weight"], theirs["h.10.attn.c_attn.bias"]
    with pytest.raises(FormatError) as caught:
        load(theirs)
    names = ", ".join(f"'blocks.10.attn.{letter}.bias'" for letter in "kqv")
    assert str(caught.value).endswith(f"missing: {names}, 'embed.weight'")


def test_unknown_and_missing_are_told_together_and_long_lists_are_cut() -> None:
    theirs = {f"new.{i}": torch.ones(1) for i in range(100)}
    with pytest.raises(FormatError, match=r"unknown: 'new.0', .* and 92 more; missing: 'blocks.0.*and \d+ more$"):
        load(theirs)


BROKEN = {
    "three parts of two rows": ("h.0.attn.c_attn.bias", (2,)),
    "three parts of seven rows": ("h.0.attn.c_attn.bias", (10,)),
    "no axis to split": ("h.0.packed", ()),
    "no axes to transpose": ("h.0.mlp.c_fc.weight", (4,)),
    "rows that make no pairs": ("h.0.rope.weight", (9, 5)),
    "rows that make no heads": ("h.0.rope.weight", (4, 5)),
}


@pytest.mark.parametrize(("name", "shape"), BROKEN.values(), ids=BROKEN)
def test_a_tensor_of_a_shape_that_a_rule_cannot_take_is_a_format_error(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match=name):
        load({**published(), name: torch.ones(shape)})


def test_a_tensor_of_ours_without_a_published_name_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="stray"):
        to_published(TABLE, {"stray": torch.ones(1)})


def test_a_prefix_stands_before_all_names_of_both_sides() -> None:
    theirs = {f"model.{name}": tensor for name, tensor in published().items()}
    table = prefixed(TABLE, "model.", "body.")
    names = [f"body.{name}" for name in wanted()]
    ours = to_ours(table, theirs, wanted=names, source="file")
    plain = load(published())
    assert ours.keys() == {f"body.{name}" for name in plain}
    assert all(torch.equal(ours[f"body.{name}"], plain[name]) for name in plain)
    assert to_published(table, ours).keys() == theirs.keys()
    theirs["model.ln.gamma"] = theirs.pop("model.ln.weight")
    theirs["model.h.0.attn.bias"] = torch.ones(1)
    again = to_ours(table, theirs, wanted=names, source="file")
    assert torch.equal(again["body.norm.weight"], theirs["model.ln.gamma"])
    assert prefixed({"a": Skip(aliases=("b",))}, "m.", "x.") == {"m.a": Skip(aliases=("m.b",))}


# The formulas by which the releases of Llama were converted, word for word.


@pytest.mark.parametrize(("num_heads", "head_dim", "dim"), [(1, 2, 3), (3, 8, 5), (4, 6, 24)])
def test_rope_halves_are_the_published_conversions(num_heads: int, head_dim: int, dim: int) -> None:
    rule = RopeHalves("q", num_heads=num_heads)
    meta = torch.randn(num_heads * head_dim, dim, generator=torch.Generator().manual_seed(0))
    half = meta.view(num_heads, head_dim // 2, 2, dim).transpose(1, 2).reshape(num_heads * head_dim, dim)
    assert torch.equal(rule.load(meta)[0], half)
    gguf = half.numpy().reshape(num_heads, 2, head_dim // 2, dim).swapaxes(1, 2).reshape(half.shape)
    assert torch.equal(rule.save(half), torch.from_numpy(gguf.copy()))
    assert torch.equal(rule.load(meta[:, 0])[0], half[:, 0])  # a bias
    assert torch.equal(rule.save(half[:, 0]), meta[:, 0])


def test_scores_of_interleaved_weights_equal_those_of_rotated_halves() -> None:
    num_heads, head_dim, dim, length = 3, 8, 24, 11
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(length, dim, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, num_heads * head_dim, dim, dtype=torch.float64, generator=generator)
    # Meta's own code: pairs of neighbours as complex numbers, turned by position * base^(-2i/Dh).
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
    first, second = (
        torch.view_as_real(torch.view_as_complex((x @ w.T).view(length, num_heads, -1, 2)) * turn[:, None]).flatten(2)
        for w in weights
    )
    expected = torch.einsum("thd,shd->hts", first, second)

    cos, sin = (table[None, None].double() for table in Rotary(head_dim).table(torch.arange(length)))
    rule = RopeHalves("q", num_heads=num_heads)
    q, k = (
        rotate((x @ rule.load(w)[0].T).view(1, length, num_heads, -1).transpose(1, 2), cos, sin)[0] for w in weights
    )
    assert torch.allclose(q @ k.mT, expected, atol=1e-4)
