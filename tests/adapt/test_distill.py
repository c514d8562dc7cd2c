"""Teacher's embeddings once, words at their translations, fewer tokens: each against an answer known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.adapt.align import place_by_translation, translations
from kiban.adapt.distill import CHUNK, teacher_embeddings
from kiban.adapt.prune import prune
from kiban.engine.encoder import EncoderPlan
from kiban.errors import CheckpointError, ConfigError
from kiban.files import exclusive

DIM = 3


class Teacher:
    """Embeds a number as its multiples, counts what it was asked, and can be made to fail."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked, self.fails_at = 0, fails_at

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if self.asked == self.fails_at:
            raise RuntimeError("killed")
        self.asked += len(texts)
        return torch.tensor([[float(text) / 8 * k for k in range(DIM)] for text in texts])


TEXTS = [str(i) for i in range(2 * CHUNK + 5)]


def embeddings(teacher: Teacher, path: Path, *, texts: Sequence[str] = TEXTS, key: str = "a") -> np.ndarray:
    return teacher_embeddings(teacher, texts, path, dim=DIM, key=key)


def test_embeddings_are_the_teachers_and_are_computed_once(tmp_path: Path) -> None:
    first, second = Teacher(), Teacher()
    found = embeddings(first, tmp_path / "t")
    assert found.shape == (len(TEXTS), DIM) and found.dtype == np.float16
    assert np.array_equal(found, np.float16([[i / 8 * k for k in range(DIM)] for i in range(len(TEXTS))]))
    assert np.array_equal(embeddings(second, tmp_path / "t"), found) and second.asked == 0


def test_an_interrupted_teacher_goes_on_where_it_was_also_with_half_a_row_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        embeddings(Teacher(fails_at=CHUNK), tmp_path / "t")
    with (tmp_path / "t.part").open("ab") as file:
        file.write(b"x")
    again = Teacher()
    found = embeddings(again, tmp_path / "t")
    assert again.asked == len(TEXTS) - CHUNK
    assert np.array_equal(found, embeddings(Teacher(), tmp_path / "other"))


@pytest.mark.parametrize("change", [{"key": "b"}, {"texts": TEXTS[1:]}], ids=["key", "texts"])
def test_another_teacher_or_other_texts_are_computed_anew(tmp_path: Path, change: dict[str, object]) -> None:
    embeddings(Teacher(), tmp_path / "t")
    again = Teacher()
    found = embeddings(again, tmp_path / "t", **change)  # type: ignore[arg-type]
    assert again.asked == len(found)


def test_two_teachers_do_not_write_one_file(tmp_path: Path) -> None:
    with exclusive(tmp_path / "t.lock", error=AssertionError()), pytest.raises(CheckpointError):  # type: ignore[arg-type]
        embeddings(Teacher(), tmp_path / "t")


def test_alignment_finds_the_words_that_translate_each_other() -> None:
    """A toy language: word w is w + 100, in any order, and 7 stands in every text and means nothing."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(300):
        words = rng.choice(50, size=4, replace=False) + 10
        pairs.append(([7, *words.tolist(), 0], [*rng.permutation(words + 100).tolist(), 0]))
    found = translations(pairs, rounds=8, ignore=[0])
    best = {
        w: int(found.target[found.source == w][found.probability[found.source == w].argmax()]) for w in range(10, 60)
    }
    assert best == {w: w + 100 for w in range(10, 60)}
    assert 0 not in found.source and 0 not in found.target
    totals = np.bincount(found.source, weights=found.probability)
    assert np.allclose(totals[[7, *range(10, 60)]], 1)


def test_one_round_of_alignment_is_the_formula() -> None:
    """das Haus - the house, das Buch - the book: after a round t(the | das) = 1/2, as both cells began alike."""
    found = translations([([1, 2], [11, 12]), ([1, 3], [11, 13])], rounds=1)
    table = {(int(s), int(t)): float(p) for s, t, p in zip(found.source, found.target, found.probability, strict=True)}
    assert table == {(1, 11): 0.5, (1, 12): 0.25, (1, 13): 0.25, (2, 11): 0.5, (2, 12): 0.5, (3, 11): 0.5, (3, 13): 0.5}


def test_a_new_row_lies_where_its_translations_do_and_has_their_length() -> None:
    embedding = torch.eye(4)
    embedding[:2] *= torch.tensor([[2.0], [4.0]])
    found = translations([([2], [0]), ([3], [0, 1])], rounds=1)
    placed = place_by_translation(embedding, found, new=[2, 3])
    torch.testing.assert_close(placed[2], torch.tensor([3.0, 0, 0, 0]))  # 3 is the mean length of the old rows
    # The row of length 4 weighs twice as much.
    torch.testing.assert_close(placed[3], torch.tensor([1.0, 2, 0, 0]) * 3 / 5**0.5)
    torch.testing.assert_close(placed[:2], embedding[:2])
    assert torch.equal(place_by_translation(embedding, found, new=[3], most=1)[2], embedding[2])


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> zoo.Loaded:
    return zoo.load(minilm_folder)


SENTENCES = ["The weather is fine today.", "a tokenizer for unbelievable words", "!?"]


def test_a_pruned_model_says_the_same_of_texts_whose_tokens_are_kept(minilm: zoo.Loaded, tmp_path: Path) -> None:
    assert minilm.tokenizer is not None
    used = {id for ids in minilm.tokenizer.encode_batch(SENTENCES) for id in ids}
    small = prune(minilm, used)
    assert small.tokenizer is not None
    assert small.config.vocab_size == small.tokenizer.vocab_size == len(used | {0, 100, 101, 102, 103})
    before, after = (EncoderPlan(model).embed(SENTENCES) for model in (minilm, small))
    torch.testing.assert_close(after, before)
    ids = small.tokenizer.encode("weather")
    assert (ids[0], ids[-1]) == (small.tokenizer.cls_id, small.tokenizer.sep_id)
    assert small.tokenizer.encode("zebra", add_special=False) == [small.tokenizer.unk_id]
    zoo.save(small, tmp_path / "small")
    torch.testing.assert_close(EncoderPlan(zoo.load(tmp_path / "small")).embed(SENTENCES), before)
    assert minilm.config.vocab_size == 30522


def test_what_cannot_be_pruned_is_told(minilm: zoo.Loaded) -> None:
    with pytest.raises(ConfigError, match="keep"):
        prune(minilm, [30522])
    with pytest.raises(ConfigError, match="WordPiece"):
        prune(zoo.create("bert-tiny", device="meta"), [1])
