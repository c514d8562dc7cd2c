"""Near-duplicates: what the signatures estimate, and what groups come of them, against exact comparison."""

from __future__ import annotations

import csv
import random
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.data.near_duplicates import (
    BANDS,
    HASHES,
    ROW,
    SHINGLE,
    SIMILARITY,
    _shingles,
    estimate,
    groups,
    signatures,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
UNIT = re.compile(r"[ぁ-ゖゝ-ゟァ-ヺー-ヿ一-鿿々〆〇]|[^\W_ぁ-ゖゝ-ゟァ-ヺー-ヿ一-鿿々〆〇]+")


def descriptions(code: str) -> list[str]:
    with (EXAMPLES / f"debian-{code}.csv").open(encoding="utf-8") as file:
        return [row["本文" if code == "ja" else "text"] for row in csv.DictReader(file)]


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    """The definition in plain Python: runs of five kana, kanji or words."""
    units = UNIT.findall(unicodedata.normalize("NFKC", text).casefold())
    size = min(SHINGLE, len(units))
    return {tuple(units[i : i + size]) for i in range(len(units) - size + 1)}


def similarity(a: str, b: str) -> float:
    left, right = plain_shingles(a), plain_shingles(b)
    return len(left & right) / len(left | right)


def edited(text: str, edits: int, draw: random.Random) -> str:
    """text with so many words or characters replaced."""
    letters = list(text)
    for _ in range(edits):
        letters[draw.randrange(len(letters))] = draw.choice("あいう漢字xyz")
    return "".join(letters)


@pytest.mark.parametrize("code", ["ja", "en"])
def test_shingles_are_kana_kanji_or_words(code: str) -> None:
    for text in descriptions(code)[:300]:
        found = _shingles(unicodedata.normalize("NFKC", text).casefold())
        assert len({*found.tolist()}) == len(plain_shingles(text)), text


@pytest.mark.parametrize("code", ["ja", "en"])
def test_the_estimate_is_near_the_similarity(code: str) -> None:
    draw = random.Random(0)
    pairs = [(text, edited(text, draw.randrange(15), draw)) for text in descriptions(code)[:400]]
    rows = signatures([text for pair in pairs for text in pair])
    exact = np.asarray([similarity(*pair) for pair in pairs])
    error = estimate(rows[::2], rows[1::2]) - exact
    # The deviation of a mean of 120 draws is at most 0.5 / sqrt(120) = 0.046.
    assert abs(error.mean()) < 0.006 and error.std() < 0.046


def test_unrelated_texts_agree_in_nothing() -> None:
    rows = signatures(descriptions("ja")[:200])
    assert np.abs(estimate(rows[:100], rows[100:])).max() < 0.15


@pytest.mark.parametrize("code", ["ja", "en"])
def test_near_copies_are_found_and_others_are_not(code: str) -> None:
    draw = random.Random(1)
    texts = descriptions(code)[:1000]
    near, far = [], []
    for text in texts:
        copy = edited(text, draw.randrange(12), draw)
        exact = similarity(text, copy)
        if exact >= SIMILARITY + 0.07:
            near.append((text, copy))
        elif exact < SIMILARITY - 0.1:
            far.append((text, copy))
    first = groups(signatures([text for pair in [*near, *far] for text in pair]))
    joined = first[1::2] == first[::2]
    assert len(near) > 100 and joined[: len(near)].mean() > 0.99
    assert len(far) > 100 and joined[len(near) :].mean() < 0.01


def test_form_does_not_matter() -> None:
    texts = [
        "ガンダムはカッコイイ！ ABC１２３",
        "ｶﾞﾝﾀﾞﾑはｶｯｺｲｲ！\n abc123",
        "ガンダムはカッコイイABC123。",
        "違うことを言う文章です",
    ]
    rows = signatures(texts)
    assert groups(rows).tolist() == [0, 0, 0, 3]
    assert rows["exact"][0] == rows["exact"][1] != rows["exact"][2]  # marks make no copy exact


@pytest.mark.parametrize("text", ["", " ", "。", "🍣", "a", "あ", "a b", "ab", "か\u3099"])
def test_the_shortest_texts_equal_themselves_only(text: str) -> None:
    others = ["違う文", "another one entirely", "！"]
    first = groups(signatures([text, *others, text]))
    assert first.tolist() == [0, 1, 2, 3, 0]


def test_groups_go_through_chains_and_name_their_first() -> None:
    draw, base = random.Random(3), descriptions("ja")[5] * 2
    chain = [base]
    for _ in range(12):
        chain.append(edited(chain[-1], 3, draw))
    assert similarity(chain[0], chain[-1]) < 0.6
    first = groups(signatures([*descriptions("ja")[10:20], *chain]))
    assert first.tolist() == [*range(10), *[10] * 13]


def test_similarity_one_joins_exact_copies_only() -> None:
    text = descriptions("ja")[0] * 3
    rows = signatures([text, text + "追記。", text.replace(" ", "  ")])
    assert groups(rows, 0.8).tolist() == [0, 0, 0] and groups(rows, 1.0)[2] == 0
    assert groups(rows, 1.0)[1] == (0 if estimate(rows[:1], rows[1:2])[0] == 1 else 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("あいう ab"), max_size=12), max_size=25), st.randoms())
def test_the_order_of_texts_does_not_change_who_belongs_together(texts: list[str], draw: random.Random) -> None:
    order = [*range(len(texts))]
    draw.shuffle(order)
    straight, shuffled = groups(signatures(texts)), groups(signatures([texts[i] for i in order]))
    back = {order[place]: order[int(first)] for place, first in enumerate(shuffled.tolist())}
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert (straight[i] == straight[j]) == (back[i] == back[j])
    assert all(straight[straight[i]] == straight[i] <= i for i in range(len(texts)))


def test_blocks_do_not_matter() -> None:
    texts = descriptions("en")[:60]
    apart = np.concatenate([signatures(texts[i : i + 7]) for i in range(0, 60, 7)])
    assert apart.tobytes() == signatures(texts).tobytes()


def test_signatures_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from kiban.data.near_duplicates import signatures;"
        "print(hashlib.sha256(signatures(['吾輩は猫である。名前はまだ無い。', 'Call me Ishmael.']).tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != ""


def boilerplate(number: int) -> np.ndarray:
    """Rows as of so many copies of one page, and as many that have nothing in common."""
    draw = np.random.default_rng(0)
    rows = np.zeros(2 * number, dtype=ROW)
    for name, top in (("exact", 2**63), ("bands", 2**63), ("hashes", 256)):
        rows[name] = draw.integers(0, top, size=rows[name].shape, dtype=np.uint64)
    copies = rows[: 2 * number : 2]
    copies["bands"], copies["hashes"] = copies["bands"][0], copies["hashes"][0]
    # Some of the bytes differ, so that they are near.
    change = draw.random(copies["hashes"].shape) < 0.02
    rows["hashes"][::2][change] = draw.integers(0, 256, size=int(change.sum()))
    return rows


def test_a_bucket_of_thousands_costs_no_square() -> None:
    rows, begun = boilerplate(30_000), time.process_time()
    first = groups(rows)
    assert (first[::2] == 0).all() and (first[1::2] == np.arange(1, len(rows), 2)).all()
    assert time.process_time() - begun < 30


@pytest.mark.slow
def test_a_million_documents_take_bounded_memory(tmp_path: Path) -> None:
    boilerplate(500_000).tofile(tmp_path / "rows.bin")
    code = f"""
import resource, numpy as np
from kiban.data.near_duplicates import ROW, groups
import scipy.sparse.csgraph
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = np.memmap({str(tmp_path / "rows.bin")!r}, dtype=ROW, mode="r")
assert (groups(rows)[::2] == 0).all()
mapped = rows.nbytes / 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - mapped) * 1024 / len(rows))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150  # bytes a document


def test_a_row_is_as_large_as_it_says() -> None:
    assert ROW.itemsize == 8 + 8 * BANDS + BANDS * HASHES == 288
