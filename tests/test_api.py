"""`kiban.load` and what the object can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kiban
from kiban import zoo
from kiban.errors import ConfigError, KibanError, ModelNotFoundError


def classifier(folder: Path, target: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    loaded = zoo.load(folder, head="sequence_classification", labels=("苦情", "質問"), generator=generator)
    zoo.save(loaded, target)
    return target


def test_an_encoder_embeds_and_says_what_it_cannot_do(tiny_bert_folder: Path) -> None:
    model = kiban.load(tiny_bert_folder)
    assert (model.abilities, model.ability) == (["embed"], "embed")
    vectors = model.embed(["画像", "a text", "画像"])
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32 and (vectors[0] == vectors[2]).all()
    for ability in ("generate", "chat", "fill", "predict"):
        with pytest.raises(ConfigError, match="it can: embed"):
            getattr(model, ability)("x")


def test_a_sentence_encoder_cuts_where_it_was_trained_to(tiny_bert_folder: Path, tmp_path: Path) -> None:
    zoo.save(
        zoo.load(tiny_bert_folder),
        tmp_path / "model",
        files={"sentence_bert_config.json": json.dumps({"max_seq_length": 6})},
    )
    short = kiban.load(tmp_path / "model")
    texts = ["an editor for text files and more", "an editor for text other words follow here"]
    assert (short.embed(texts)[0] == short.embed(texts)[1]).all()
    whole = kiban.load(tiny_bert_folder).embed(texts)
    assert (whole[0] != whole[1]).any()


def test_a_classifier_predicts_and_saves(tiny_bert_folder: Path, tmp_path: Path) -> None:
    model = kiban.load(classifier(tiny_bert_folder, tmp_path / "model"))
    assert (model.ability, model.labels) == ("classify", ("苦情", "質問"))
    texts = ["請求書", "how do I print this?", "", "長い文" * 500]
    scores = model.predict_proba(texts)
    assert all(sum(row.values()) == pytest.approx(1.0) for row in scores)
    assert model.predict(texts) == [max(row, key=row.__getitem__) for row in scores]
    model.save(tmp_path / "again")
    assert kiban.load(tmp_path / "again").predict_proba(texts) == scores
    with pytest.raises(KibanError, match="exists"):
        model.save(tmp_path / "again")


@pytest.mark.weights
def test_a_decoder_generates_streams_and_chats(smollm2_gguf: Path) -> None:
    model = kiban.load("smollm2-135m-instruct")
    assert model.abilities == ["chat", "generate"]
    whole = model.generate("The capital of France is", max_new_tokens=8)
    assert "Paris" in whole
    assert model.generate(["The capital of France is", "1, 2, 3,"], max_new_tokens=8)[0] == whole
    assert "".join(model.stream("The capital of France is", max_new_tokens=8)) == whole
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert "".join(model.stream_chat(chat, max_new_tokens=12)) == model.chat(chat, max_new_tokens=12)
    sampled = [model.generate("Once", max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(TypeError):
        model.generate("x", maximum_tokens=3)


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ModelNotFoundError, match="minilm-l6"):
        kiban.load("minilm-16")
    with pytest.raises(AttributeError, match="lode"):
        kiban.lode  # noqa: B018


def test_a_hub_id_without_a_network_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="network") as caught:
        kiban.load("nobody/no-such-model")
    assert "\n" not in str(caught.value)
