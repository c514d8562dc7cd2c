"""`kiban run` by what the model can do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.families.bert import BertMaskedLM

Kiban = Callable[..., object]


@pytest.fixture(scope="module")
def masked_folder(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with a masked-language-model head."""
    loaded = zoo.load(tiny_bert_folder)
    module = BertMaskedLM(loaded.module)  # type: ignore[arg-type]
    module.initialise(torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("masked") / "model"
    zoo.save(zoo.Loaded(loaded.family, loaded.config, module, loaded.tokenizer, "masked_lm", (), "x", None), folder)
    return folder


def test_an_encoder_embeds(kiban: Callable, tiny_bert_folder: Path) -> None:  # type: ignore[type-arg]
    vector = json.loads(kiban("run", str(tiny_bert_folder), "画像 viewer", "--json").out)
    assert len(vector) == 32 and sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5)
    assert "32 numbers" in kiban("run", str(tiny_bert_folder), "画像 viewer").out


def test_a_masked_model_fills(kiban: Callable, masked_folder: Path) -> None:  # type: ignore[type-arg]
    answers = json.loads(kiban("run", str(masked_folder), "an [MASK] for text", "--json").out)
    assert len(answers) == 5
    scores = [score for _, score in answers]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    said = kiban("run", str(masked_folder), "no gap")
    assert said.code == 1 and "[MASK]" in said.err


def test_a_classifier_classifies_from_standard_input(
    kiban: Callable,  # type: ignore[type-arg]
    tiny_bert_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = zoo.load(
        tiny_bert_folder,
        head="sequence_classification",
        labels=("苦情", "質問"),
        generator=torch.Generator().manual_seed(0),
    )
    zoo.save(loaded, tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("請求書の再発行\n"))
    said = kiban("run", str(tmp_path / "model"), "--json")
    assert "苦情" in said.out and "\\u" not in said.out
    assert sum(json.loads(said.out).values()) == pytest.approx(1.0)


@pytest.mark.weights
def test_a_chat_model_answers(kiban: Callable, smollm2_gguf: Path) -> None:  # type: ignore[type-arg]
    question = ("run", str(smollm2_gguf), "What is the capital of France?", "--max-new-tokens", "16")
    short = kiban(*question, "--stop", "Paris").out
    assert "Paris" not in short and len(short) > 5
    assert "Paris" in json.loads(kiban(*question, "--json").out)["text"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "chat"], "it can: embed"),
        (["--task", "dance"], "it can: embed"),
    ],
)
def test_what_a_model_cannot_do_is_told(
    kiban: Callable,  # type: ignore[type-arg]
    tiny_bert_folder: Path,
    arguments: list[str],
    told: str,
) -> None:
    said = kiban("run", str(tiny_bert_folder), "text", *arguments)
    assert said.code == 1 and told in said.err


def test_no_text_and_no_model_are_told(
    kiban: Callable,  # type: ignore[type-arg]
    tiny_bert_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no text" in kiban("run", str(tiny_bert_folder)).err
    assert "smollm2-135m-instruct" in kiban("run", "smolm2-135m-instruct", "hi").err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--max-new-tokens", "0"),
        ("--top-k", "-3"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--stop", ""),
    ],
)
def test_impossible_controls_name_themselves_before_a_model_is_opened(
    kiban: Callable,  # type: ignore[type-arg]
    option: str,
    value: str,
) -> None:
    said = kiban("run", "no-such-model", "hi", option, value)
    assert said.code == 1 and option[2:].replace("-", "_") in said.err and said.err.count("\n") == 1


def test_a_decoder_chats_or_continues(kiban: Callable, tiny_llama_folder: Path) -> None:  # type: ignore[type-arg]
    command = ("run", str(tiny_llama_folder), "画像を表示する", "--max-new-tokens", "12")
    chat, text = kiban(*command), kiban(*command, "--task", "generate")
    assert chat.code == text.code == 0 and chat.out != text.out and len(text.out) > 5
    assert json.loads(kiban(*command, "--task", "generate", "--json").out)["text"] + "\n" == text.out
    sampled = [kiban(*command, "--temperature", "1", "--seed", seed).out for seed in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2]
    long = kiban(*command[:3], "--max-new-tokens", "500")
    assert long.code == 1 and "500" in long.err and "96" in long.err


def test_text_that_is_not_in_the_terminals_encoding_is_told(
    kiban: Callable,  # type: ignore[type-arg]
    tiny_bert_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("画像".encode("cp932")), encoding="utf-8"))
    said = kiban("run", str(tiny_bert_folder))
    assert said.code == 1 and "standard input, byte 0" in said.err and said.err.count("\n") == 1
