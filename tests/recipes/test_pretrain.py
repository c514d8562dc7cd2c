"""Recipes: what is held out, and whole runs at the smallest size that leave a model other tools open."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.errors import ConfigError, DatasetError
from kiban.recipes import bert, gpt, llama
from kiban.recipes.base import Recipe, find, flops_per_token
from kiban.recipes.corpus import Corpus, is_held_out, prepare
from kiban.recipes.leave import leave, plot
from kiban.recipes.pretrain import Judge, Length, Plan, pretrain
from kiban.recipes.speed import measure, settle_threads

FAMILIES = {"gpt": gpt, "llama": llama, "bert": bert}


@pytest.fixture(scope="module")
def corpus(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(corpus_file, tmp_path_factory.mktemp("data"), gpt.SIZES["tiny"], vocab_size=600)


def plan_of(corpus: Corpus, recipe: Recipe | None = None) -> Plan:
    recipe = recipe or dataclasses.replace(gpt.SIZES["tiny"], seq_len=64, batch_tokens=512, micro_tokens=256)
    return Plan(recipe=recipe, corpus=corpus, precision="fp32")


def test_every_document_is_on_one_side_and_equal_texts_on_the_same(corpus_file: Path, corpus: Corpus) -> None:
    texts = [json.loads(line)["text"] for line in corpus_file.read_text("utf-8").splitlines()]
    held_out = [text for text in texts if is_held_out(text)]
    assert len(corpus.held_out) == len(held_out) > 5
    assert len(corpus.train) == len(texts) - len(held_out)
    decoded = [corpus.tokenizer.decode(corpus.held_out.document(i)[1:].tolist()) for i in range(len(held_out))]
    assert decoded == held_out
    assert is_held_out(held_out[0] + "\n") and not is_held_out(held_out[0] + "!!")


def test_preparing_again_makes_nothing_again(corpus_file: Path, tmp_path: Path) -> None:
    first = prepare(corpus_file, tmp_path, gpt.SIZES["tiny"], vocab_size=400)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = prepare(corpus_file, tmp_path, gpt.SIZES["tiny"], vocab_size=500)
    assert again.tokenizer.vocab_size == first.tokenizer.vocab_size == 400
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_too_few_documents_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("いろはにほへと", encoding="utf-8")
    with pytest.raises(DatasetError, match="too few"):
        prepare(tmp_path / "a.txt", tmp_path / "data", gpt.SIZES["tiny"])


def test_a_misspelt_size_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="gpt2-small"):
        find(gpt.SIZES, "gpt2-smal")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_builds_and_is_told_apart(family: str) -> None:
    for name, recipe in FAMILIES[family].SIZES.items():
        with torch.device("meta"):
            module = zoo.families()[recipe.family].build(recipe.config(recipe.vocab_size or 4096))
        assert (recipe.family, recipe.size) == (family, name) and recipe.batch_rows >= 1
        assert recipe.seq_len <= module.config.max_seq_len  # type: ignore[operator,union-attr]
        counted = flops_per_token(module, recipe.config(4096), recipe.seq_len)
        assert counted > 0
    assert set(FAMILIES[family].LADDER) <= set(FAMILIES[family].SIZES)


def test_flops_are_six_for_each_weight_of_a_product_and_twelve_for_attention() -> None:
    config = gpt.SIZES["tiny"].config(512)
    with torch.device("meta"):
        module = zoo.families()["gpt"].build(config)
    weights = 2 * (4 * 64 * 64 + 8 * 64 * 64) + 512 * 64
    assert flops_per_token(module, config, 100) == 6 * weights + 12 * 2 * 64 * 100


def test_a_decoder_learns_leaves_a_model_and_stands_beside_the_ngram_model(corpus: Corpus, tmp_path: Path) -> None:
    notes: list[str] = []
    plan = plan_of(corpus)
    before = Judge(plan, plan.model())(10_000)["bits_per_character"]
    loaded, result = pretrain(plan, Length(steps=30), tmp_path, note=notes.append)
    bits = result.metrics["bits_per_character"]
    assert bits < before - 1 and result.steps == 30 and result.tokens == 30 * 8 * 64
    assert result.ngram_bits_per_character is not None and 1 < result.ngram_bits_per_character < bits
    assert any("bits_per_character" in note for note in notes)
    final = leave(plan, loaded, result, tmp_path, data="説明.jsonl", version="test")
    assert "説明.jsonl" in (final / "README.md").read_text("utf-8")
    assert (plot(tmp_path, result, lang="ja")).read_text("utf-8").count("ビット/文字") >= 1

    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, words = AutoModelForCausalLM.from_pretrained(final).eval(), AutoTokenizer.from_pretrained(final)
    text = "画像を表示するライブラリです。 A library to show images."
    ids = words(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == corpus.tokenizer.encode(text)
    with torch.inference_mode():
        assert (theirs(ids).logits - loaded.module(ids)).abs().max() < 1e-4


def test_bits_per_character_are_those_of_the_formula(corpus: Corpus) -> None:
    plan = plan_of(corpus)
    loaded = plan.model()
    total = characters = 0.0
    with torch.inference_mode():
        for i in range(len(corpus.held_out)):
            ids = torch.from_numpy(corpus.held_out.document(i))[None, :65]
            logits = loaded.module(ids[:, :-1])[0].log_softmax(-1)
            total -= float(logits.gather(1, ids[0, 1:, None]).sum())
            characters += int(corpus.held_out.characters[i])
    # Beyond 64 tokens windows slide; fresh weights guess alike everywhere, so the mean hardly moves.
    tokens = sum(min(64, len(corpus.held_out.document(i)) - 1) for i in range(len(corpus.held_out)))
    rate = total / tokens * (corpus.held_out.facts.tokens - len(corpus.held_out)) / math.log(2) / characters
    assert Judge(plan, loaded)(10**9)["bits_per_character"] == pytest.approx(rate, rel=0.02)


def test_an_interrupted_run_goes_on_to_the_same_end(corpus: Corpus, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage.startswith("train") and done == 25:
            raise StoppedError

    plan = plan_of(corpus)
    whole, _ = pretrain(plan, Length(steps=30), tmp_path / "whole")
    with pytest.raises(StoppedError):
        pretrain(plan, Length(steps=30), tmp_path / "cut", progress=stop)
    again, _ = pretrain(plan, Length(steps=30), tmp_path / "cut")
    pairs = zip(whole.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_speed_is_measured_for_a_size(corpus: Corpus) -> None:
    parameters, rate = measure(plan_of(corpus))
    assert parameters == plan_of(corpus).model().num_parameters and rate > 100


def test_an_encoder_learns_hidden_words_and_opens_elsewhere(corpus_file: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(bert.SIZES["tiny"], seq_len=64, batch_tokens=1024, micro_tokens=1024)
    corpus = prepare(corpus_file, tmp_path / "data", recipe, vocab_size=800)
    plan = plan_of(corpus, recipe)
    before = Judge(plan, plan.model())(10_000)
    loaded, result = pretrain(plan, Length(steps=50), tmp_path / "run")
    assert result.metrics["masked_loss"] < before["masked_loss"] - 0.5
    assert 0 <= result.metrics["next_sentence_accuracy"] <= 1 and result.ngram_bits_per_character is None
    final = leave(plan, loaded, result, tmp_path / "run", data="説明.jsonl", version="test")

    from transformers import AutoModelForPreTraining

    theirs = AutoModelForPreTraining.from_pretrained(final).eval()
    ids = torch.tensor([corpus.tokenizer.encode("画像を表示するライブラリです。")])
    with torch.inference_mode():
        words, follows = loaded.module(ids)
        answer = theirs(ids)
    assert (answer.prediction_logits - words).abs().max() < 1e-4
    assert (answer.seq_relationship_logits - follows).abs().max() < 1e-4


def test_one_thread_is_used_only_where_it_is_clearly_faster(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of which one is kept waiting, as on a busy machine: every operation takes as long as the later one."""
    from kiban.recipes import speed

    before = torch.get_num_threads()
    try:
        for rates, expected in (({2: 100.0, 1: 600.0}, 1), ({2: 100.0, 1: 110.0}, 2)):
            torch.set_num_threads(2)
            monkeypatch.setattr(speed, "measure", lambda plan, steps, r=rates: (0, r[torch.get_num_threads()]))
            assert settle_threads(plan_of(corpus))[0] == expected == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
