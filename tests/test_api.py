"""`kiban.load` and what the object can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kiban
from kiban import zoo
from kiban.errors import ConfigError, DatasetError, KibanError, LimitError, ModelNotFoundError
from kiban.families.bert import BertMaskedLM
from kiban.families.llama import Llama, LlamaConfig


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


def test_an_encoder_that_pools_otherwise_is_refused(tiny_bert_folder: Path, tmp_path: Path) -> None:
    settings = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    files = {"1_Pooling/config.json": json.dumps(settings)}
    zoo.save(zoo.load(tiny_bert_folder), tmp_path / "model", files=files)
    with pytest.raises(ConfigError, match="pooling_mode_cls_token"):
        kiban.load(tmp_path / "model").embed(["a"])


def test_one_text_gives_one_answer(tiny_bert_folder: Path, tmp_path: Path) -> None:
    encoder, model = kiban.load(tiny_bert_folder), kiban.load(classifier(tiny_bert_folder, tmp_path / "model"))
    assert np.array_equal(encoder.embed("画像を表示"), encoder.embed(["画像を表示"])[0])
    assert model.predict("請求書") == model.predict(["請求書"])[0]
    assert model.predict_proba("請求書") == model.predict_proba(["請求書"])[0]
    assert encoder.embed([]).shape == (0, 32) and model.predict([]) == []


def test_a_masked_model_fills_the_first_gap(tiny_bert_folder: Path, tmp_path: Path) -> None:
    loaded = zoo.load(tiny_bert_folder)
    module = BertMaskedLM(loaded.module)  # type: ignore[arg-type]
    module.initialise(torch.Generator().manual_seed(0))
    headed = zoo.Loaded(loaded.family, loaded.config, module, loaded.tokenizer, "masked_lm", (), "x", None)
    zoo.save(headed, tmp_path / "model")
    model = kiban.load(tmp_path / "model")
    assert model.ability == "fill"
    size = loaded.config.vocab_size
    whole = model.fill("画像を[MASK]する[MASK]", top=2 * size)
    assert len(whole) == size and sum(p for _, p in whole) == pytest.approx(1.0, abs=1e-4)
    assert model.fill("画像を[MASK]する[MASK]") == whole[:5]
    with pytest.raises(ConfigError, match=r"\[MASK\]"):
        model.fill("画像")
    with pytest.raises(LimitError, match="takes 128"):
        model.fill("[MASK] " + "画像 " * 200)


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=50, num_layers=1, dim=16, num_heads=2, num_kv_heads=1, ffn_dim=32)
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(0))
    zoo.save(zoo.Loaded(zoo.families()["llama"], config, module, None, None, (), "x", None), tmp_path / "model")
    with pytest.raises(ConfigError, match="no tokenizer"):
        kiban.load(tmp_path / "model").generate("x")


def test_a_run_folder_opens_its_final_model(tiny_bert_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n", "utf-8")
    with pytest.raises(ModelNotFoundError, match="--resume"):
        kiban.load(run)
    model = kiban.load(classifier(tiny_bert_folder, run / "final"))
    assert kiban.load(run).predict_proba("請求書") == model.predict_proba("請求書")
    assert kiban.load(str(run)).labels == ("苦情", "質問")


def test_adopt_is_a_package_and_a_function(tmp_path: Path) -> None:
    from kiban.adopt.job import adopt

    assert callable(kiban.adopt) and callable(adopt)
    with pytest.raises(DatasetError, match="no such file"):
        kiban.adopt(tmp_path / "nowhere.csv", out=tmp_path / "run")


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
    whole = model.generate("The capital of France is", max_new_tokens=6)
    assert "Paris" in whole
    assert model.generate(["The capital of France is", "1, 2, 3,"], max_new_tokens=6)[0] == whole
    assert "".join(model.stream("The capital of France is", max_new_tokens=6)) == whole
    chat = [{"role": "user", "content": "Say yes."}]
    assert "".join(model.stream_chat(chat, max_new_tokens=6)) == model.chat("Say yes.", max_new_tokens=6)
    sampled = [model.generate("Once", max_new_tokens=4, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
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
