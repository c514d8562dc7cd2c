"""BERT's exhibit: what its tasks ask is right, its arms differ in what they should alone, and a reduced run measures."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from kiban import zoo
from kiban.config import silent
from kiban.data.next_sentence import collate
from kiban.errors import DatasetError
from kiban.families.bert import BertNextSentence, BertPretraining
from kiban.tour import bert_models, bert_tasks
from kiban.tour.bert import ARMS, EXHIBIT, TASKS, measure
from kiban.tour.bert_models import Material, Setting
from kiban.tour.bert_tasks import Description
from kiban.tour.bert_tuning import Reranker, Tuner

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
QUICK = dataclasses.replace(EXHIBIT.quick, descriptions=str(EXAMPLES / "data" / "debian-en.csv"))
FULL = dataclasses.replace(EXHIBIT.full, descriptions=QUICK.descriptions, texts=str(EXAMPLES / "cache" / "text-en"))


@pytest.fixture(scope="module")
def material() -> Material:
    return bert_models.gather(QUICK)


@pytest.fixture(scope="module")
def japanese() -> Material:
    return bert_models.gather(dataclasses.replace(QUICK, descriptions=str(EXAMPLES / "data" / "debian-ja.csv")))


# What is asked ------------------------------------------------------------------------------------------------------


def test_no_model_reads_about_a_package_that_it_is_asked_about(material: Material) -> None:
    train, test = ({row.name for row in rows} for rows in (material.split.train, material.split.test))
    assert len(test) == QUICK.num_test and not train & test
    # Without other texts the pretraining documents are the descriptions to learn from, and nothing else.
    assert len(material.train) == QUICK.repeats * len(material.split.train)
    words = [[id for sentence in document for id in sentence] for document in material.train]
    texts = [row.text for row in material.split.train]
    assert sorted(words) == sorted(material.tokenizer.encode_batch(texts, add_special=False))


def test_labels_differ_by_seed_and_are_as_many_as_said(material: Material) -> None:
    first, second = (bert_tasks.sample(material.split.train, 100, seed) for seed in (0, 1))
    assert len({row.name for row in first}) == 100
    assert first == bert_tasks.sample(material.split.train, 100, 0) != second


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A client for GNOME and the Debian Project. Uses GTK+ only.", ["GNOME", "Debian Project", "GTK"]),
        ("fonts for LaTeX This package is for TeX.", ["LaTeX", "TeX"]),
        ("Games are fun. Gaming on Linux is fun; I like Perl.", ["Linux", "Perl"]),
        ("plain words, no name at all", []),
        ("", []),
    ],
)
def test_names_are_words_with_capitals_inside_sentences(text: str, names: list[str]) -> None:
    assert [text[start:end] for start, end in bert_tasks.name_spans(text)] == names


def test_tags_stand_on_the_first_piece_of_each_word_of_a_name(material: Material) -> None:
    row = Description("x", "Tool for the Debian Project and others.", ("Tool for the Debian Project and others.",), "")
    (found,) = bert_tasks.tag_rows([row], material.tokenizer, 64)
    text = row.text.lower()
    tagged = [
        (material.tokenizer.decode([id]).replace(" ", ""), label)
        for id, label in zip(found.tokens, found.labels, strict=True)
        if label > 0
    ]
    assert [label for _, label in tagged] == [1, 2]
    assert all(word.removeprefix("##") in text for word, _ in tagged)
    assert found.labels[0] == found.labels[-1] == bert_tasks.IGNORE


@pytest.mark.parametrize("language", ["material", "japanese"])
def test_the_answer_is_the_name_of_the_package_asked_about(language: str, request: pytest.FixtureRequest) -> None:
    given: Material = request.getfixturevalue(language)
    tokenizer = given.tokenizer
    rows = [row for row in given.split.test if len(row.sentences) > 1]
    # Long enough for every row to be kept, so that they stay in order.
    found = bert_tasks.answer_rows(rows, tokenizer, 1000)
    for row, asked in zip(rows, found, strict=True):
        assert asked.tokens[asked.start : asked.end + 1] == tokenizer.encode(row.name, add_special=False)
        assert asked.tokens[asked.start - 1] == asked.tokens[asked.end + 1] == tokenizer.sep_id
        question = tokenizer.encode(" ".join(row.sentences[1:]), add_special=False)[: bert_tasks.QUESTION]
        assert asked.tokens[1 : asked.first - 1] == question
        assert asked.tokens[asked.first :].count(tokenizer.sep_id) == 2 * bert_tasks.NUM_LISTED
    # The place in the list says nothing.
    places = Counter(asked.tokens[asked.first : asked.start].count(tokenizer.sep_id) // 2 for asked in found)
    assert len(places) == 4 and max(places.values()) < 0.4 * len(found)


@pytest.mark.parametrize(("language", "low", "high"), [("material", 0.35, 0.65), ("japanese", 0.35, 0.75)])
def test_candidates_are_bm25s_and_the_relevant_one_is_marked(
    language: str, low: float, high: float, request: pytest.FixtureRequest
) -> None:
    given: Material = request.getfixturevalue(language)
    found = bert_tasks.collection(given.split.test, given.tokenizer)
    asked = bert_tasks.test_groups(found)
    for place, (search, group) in enumerate(zip(found.searches, asked, strict=True)):
        assert len(group.passages) == bert_tasks.NUM_CANDIDATES
        assert group.prior == sorted(group.prior, reverse=True)
        if group.relevant >= 0:
            assert group.passages[group.relevant] == found.passages[place]
        else:
            assert search.relevant not in search.candidates
    mrr = np.mean([1 / (group.relevant + 1) if 0 <= group.relevant < 10 else 0.0 for group in asked])
    assert low < mrr < high  # a search engine that is of use, and can be bettered


def test_training_groups_hold_the_relevant_passage_once(material: Material) -> None:
    found = bert_tasks.collection(material.split.train[:60], material.tokenizer)
    groups = bert_tasks.training_groups(found, seed=0)
    for search, group in zip(found.searches, groups, strict=True):
        assert len(group.passages) == len(group.prior) == bert_tasks.GROUP and group.relevant == 0
        assert group.passages[0] == found.passages[search.relevant]
        assert group.prior[0] == search.relevant_score
    assert groups != bert_tasks.training_groups(found, seed=1)


# Models -------------------------------------------------------------------------------------------------------------


def pretraining(arm: bert_models.Arm, material: Material) -> BertPretraining:
    module = BertPretraining(bert_models.body(QUICK, arm, material.tokenizer.vocab_size, dropout=0.0))
    return zoo.initialise(module, torch.Generator().manual_seed(0)).eval()


@torch.no_grad()
def test_a_causal_bert_sees_nothing_behind_a_token(material: Material) -> None:
    tokens = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False
    changed = tokens.clone()
    changed[:, 6] += 1
    for arm, sees in (("causal", False), ("bert", True)):
        model = pretraining(arm, material).body  # type: ignore[arg-type]
        before, after = model(tokens, mask=mask), model(changed, mask=mask)
        assert torch.allclose(before[:, 1:6], after[:, 1:6], atol=1e-6) is not sees
        # What is pooled has seen the whole row in either.
        assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-4)
        changed_padding = tokens.clone()
        changed_padding[1, 9:] = 7
        assert torch.allclose(before[1, :9], model(changed_padding, mask=mask)[1, :9], atol=1e-6)


def test_arms_begin_with_the_same_weights(material: Material) -> None:
    first, *others = (pretraining(arm, material).state_dict() for arm in ARMS)
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def test_without_next_sentence_its_head_stays_as_drawn(material: Material, tmp_path: Path) -> None:
    few = dataclasses.replace(QUICK, steps=3)
    drawn = pretraining("no_nsp", material)
    for arm, learns in (("no_nsp", False), ("bert", True)):
        trained = bert_models.pretrain(few, material, arm, seed=0, folder=tmp_path / arm)  # type: ignore[arg-type]
        assert torch.equal(trained.follows.weight, drawn.follows.weight) is not learns
        assert not torch.equal(trained.body.embed.token.weight, drawn.body.embed.token.weight)


def test_a_model_that_always_says_random_is_half_right(material: Material) -> None:
    module = pretraining("bert", material)
    for answer in (0, 1):
        with torch.no_grad():
            module.follows.bias.copy_(torch.tensor([9.0, -9.0] if answer == 0 else [-9.0, 9.0]))
        assert bert_models.next_sentence_accuracy(QUICK, material, module) == pytest.approx(50.0)


@torch.no_grad()
def test_an_undecided_reranker_leaves_bm25s_order(material: Material) -> None:
    pairs = BertNextSentence(pretraining("bert", material).body)
    pairs.follows.weight.zero_()
    pairs.follows.bias.zero_()
    groups = bert_tasks.test_groups(bert_tasks.collection(material.split.test[:30], material.tokenizer))[:3]
    batch = bert_tasks.collate_groups(groups, tokenizer=material.tokenizer, max_len=64)
    module = Reranker(pairs).eval()
    scores = module(batch["tokens"], segments=batch["segments"], mask=batch["mask"], prior=batch["prior"])
    torch.testing.assert_close(scores, module.weight * batch["prior"])


def test_passage_and_query_are_laid_out_as_text_that_goes_on(material: Material) -> None:
    tokenizer = material.tokenizer
    group = bert_tasks.Group([50, 51], [[60, 61, 62], [70] * 90], [2.0, 1.0], 0)
    batch = bert_tasks.collate_groups([group], tokenizer=tokenizer, max_len=64)
    assert batch["tokens"][0, :8].tolist() == [tokenizer.cls_id, 60, 61, 62, tokenizer.sep_id, 50, 51, tokenizer.sep_id]
    assert batch["segments"][0, :8].tolist() == [0] * 5 + [1] * 3
    assert batch["tokens"].shape[1] <= 64 and batch["mask"][0].sum() == 8
    assert collate([], pad_id=0)["tokens"].shape[0] == 0


# Runs ---------------------------------------------------------------------------------------------------------------


def test_missing_texts_tell_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"examples/get_text\.py en"):
        bert_models.gather(dataclasses.replace(QUICK, texts=str(tmp_path)))
    with pytest.raises(DatasetError, match="does not exist"):
        bert_models.gather(dataclasses.replace(QUICK, descriptions=str(tmp_path / "none.csv")))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="line 1"):
        bert_models.gather(dataclasses.replace(QUICK, descriptions=str(tmp_path / "other.csv")))
    with pytest.raises(DatasetError, match="5000 are needed"):
        bert_models.gather(dataclasses.replace(QUICK, num_test=4900))


def test_a_reduced_run_measures_every_arm_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stages: list[str] = []
    found = measure(QUICK, seed=0, folder=tmp_path, progress=lambda stage, done, total: stages.append(stage))
    assert set(found) == {
        *(f"{task}_{arm}" for task in TASKS for arm in ARMS),
        *(f"gain_{task}" for task in TASKS),
        *("next_bert", "next_causal", "bm25", "over_bm25"),
    }
    assert all(0 <= found[f"{task}_{arm}"] <= 100 for task in TASKS for arm in ARMS)
    assert {asked.measure for asked in EXHIBIT.requirements} <= set(found)
    for arm in ARMS:
        assert any(stage.startswith(arm) for stage in stages)
    # What is there is not measured again: the arms' own files are believed.
    path = tmp_path / "scratch" / "measures.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "class_scratch": -1.0}))
    again = measure(QUICK, seed=0, folder=tmp_path, progress=silent)
    assert again == {**found, "class_scratch": -1.0, "gain_class": found["class_bert"] + 1.0}


@pytest.mark.slow
def test_the_exhibit_passes_its_bars(tmp_path: Path) -> None:
    from kiban.tour.running import run

    outcome = run(dataclasses.replace(EXHIBIT, full=FULL), tmp_path)
    assert outcome.passed, [bar for bar in outcome.bars if not bar.passed]


def test_a_tuner_knows_what_it_has_learned(material: Material) -> None:
    """Asked about the rows that it was tuned on, it must be right: rows, logits and answers belong together."""
    rows = [row for row in material.split.train if len(row.sentences) > 1][:16]
    same = dataclasses.replace(material, split=bert_tasks.Split(rows, rows))
    settings = dataclasses.replace(QUICK, num_labels=16, epochs=50, tune_lr=3e-3)
    tuner = Tuner(settings, same, "scratch", pretraining("scratch", material), 0)
    found = {"class": tuner.classes(), "names": tuner.names(), "span": tuner.spans()}
    assert min(found.values()) > 80, found


def test_settings_of_the_exhibit_fit_the_task() -> None:
    for settings in (EXHIBIT.full, EXHIBIT.quick):
        assert isinstance(settings, Setting)
    assert EXHIBIT.full.num_labels == 500
