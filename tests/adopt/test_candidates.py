"""Which ways to adopt which models enter a race, and why others do not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from kiban.adopt.candidates import fetch, list_candidates
from kiban.adopt.strategies import BY_KIND, NAMES, strategy
from kiban.adopt.strategies.base import Candidate, Task, TaskKind
from kiban.catalogue.entries import entries
from kiban.choose import memory
from kiban.config import Traits
from kiban.errors import ConfigError, FormatError, ModelNotFoundError

ENCODER = Traits(reads=frozenset({"text"}), writes=frozenset({"embedding"}), causal=False)
DECODER = Traits(reads=frozenset({"text"}), writes=frozenset({"text"}), causal=True)
EYES = Traits(reads=frozenset({"image"}), writes=frozenset({"embedding"}), causal=False)
BOTH = Traits(reads=frozenset({"text", "image"}), writes=frozenset({"embedding"}), causal=False)
KINDS: tuple[TaskKind, ...] = ("multi_label", "tagging", "pair", "text_to_text", "image")


def test_embedded_models_enter_in_every_way_that_fits_them_cheap_ones_first(task: Task) -> None:
    chosen, skipped = list_candidates(task)
    assert not skipped
    assert [c.id for c in chosen] == [
        "baseline", "linear_head:kiban-encoder-ja-en", "linear_head:minilm-l6", "zero_shot:smollm2-135m-instruct",
        "few_shot:smollm2-135m-instruct", "finetune_encoder:kiban-encoder-ja-en", "finetune_encoder:minilm-l6",
        "lora_decoder:smollm2-135m-instruct",
    ]  # fmt: skip
    assert not {c.model for c in chosen} & {e.name for e in entries().values() if e.opt_in}
    licences = {c.strategy: (c.licence, c.commercial_use) for c in chosen}
    assert licences["linear_head"] == ("MIT", True) and licences["zero_shot"] == ("Apache-2.0", True)


def test_the_baseline_is_always_in_and_unknown_names_are_told(task: Task) -> None:
    heads = ["baseline", "linear_head:kiban-encoder-ja-en", "linear_head:minilm-l6"]
    assert [c.id for c in list_candidates(task, strategies=["linear_head"])[0]] == heads
    assert [c.id for c in list_candidates(task, models=[])[0]] == ["baseline"]
    with pytest.raises(ConfigError, match="did you mean 'linear_head'"):
        list_candidates(task, strategies=["baseline", "linear-head"])
    with pytest.raises(ModelNotFoundError, match="did you mean 'minilm-l6'"):
        list_candidates(task, models=["minilm-l7"])


def test_folders_of_the_users_own_are_candidates(task: Task, tiny_bert_folder: Path, tiny_llama_folder: Path) -> None:
    chosen, _ = list_candidates(task, models=[str(tiny_bert_folder), str(tiny_llama_folder), str(tiny_bert_folder)])
    assert [c.id for c in chosen] == [
        "baseline", "linear_head:model", "zero_shot:llama", "few_shot:llama", "finetune_encoder:model", "lora_decoder:llama",
    ]  # fmt: skip
    assert {c.licence for c in chosen[1:]} == {"unknown"}
    assert [c.path for c in fetch(chosen)[0]][:3] == [None, tiny_bert_folder, tiny_llama_folder]


def test_two_folders_of_one_name_are_refused(task: Task, tiny_bert_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / tiny_bert_folder.name
    shutil.copytree(tiny_bert_folder, other)
    with pytest.raises(ConfigError, match="same last name"):
        list_candidates(task, models=[str(tiny_bert_folder), str(other)])


def test_a_folder_that_is_no_model_is_told(task: Task, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        list_candidates(task, models=[str(tmp_path)])


def test_what_needs_too_much_memory_is_left_out_with_the_numbers(task: Task, tiny_bert_folder: Path) -> None:
    parameters = entries()["minilm-l6"].parameters or 0
    limit = memory.estimate(parameters, "full") - 1
    chosen, skipped = list_candidates(task, models=["minilm-l6"], max_memory=limit)
    assert [c.id for c in chosen] == ["baseline", "linear_head:minilm-l6"]
    assert [(s.candidate.id, s.reason.split()[0]) for s in skipped] == [("finetune_encoder:minilm-l6", "needs")]
    assert not list_candidates(task, models=["minilm-l6"], max_memory=limit + 1)[1]
    own = memory.estimate(sum(p.numel() for p in _module(tiny_bert_folder)), "full")
    folder = [str(tiny_bert_folder)]
    assert not list_candidates(task, models=folder, max_memory=own)[1]
    assert len(list_candidates(task, models=folder, max_memory=own - 1)[1]) == 1
    assert len(list_candidates(task, models=folder, max_memory=2**20)[1]) == 2


def _module(folder: Path):  # type: ignore[no-untyped-def]
    from kiban import zoo

    return zoo.load(folder).module.parameters()


def test_what_may_not_be_sold_is_left_out_when_that_is_required(task: Task, tiny_bert_folder: Path) -> None:
    chosen, skipped = list_candidates(task, models=["minilm-l6", str(tiny_bert_folder)], commercial=True)
    assert {c.model for c in chosen} == {None, "minilm-l6"}
    assert {s.candidate.model for s in skipped} == {str(tiny_bert_folder)}
    assert all("not known to allow commercial use" in s.reason for s in skipped)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_other_tasks_are_refused_with_a_reason(task: Task, name: str, kind: TaskKind) -> None:
    own = next(kind for kind, names in BY_KIND.items() if name in names)
    other = dataclasses.replace(task, kind=kind)
    for traits in (None, ENCODER, DECODER, EYES, BOTH):
        told = strategy(name).refusal(other, traits)
        assert kind == own or told == f"not written for {kind} tasks"
    if kind not in BY_KIND:
        chosen, skipped = list_candidates(other)
        assert not chosen and [s.reason for s in skipped] == [f"not written for {kind} tasks"]


def test_strategies_ask_traits_and_not_names(task: Task) -> None:
    def takes(task: Task) -> dict[str, list[Traits | None]]:
        known = (None, ENCODER, DECODER, EYES, BOTH)
        return {name: [t for t in known if not strategy(name).refusal(task, t)] for name in NAMES}

    texts = takes(task)
    assert texts["baseline"] == [None, ENCODER, DECODER, EYES, BOTH]
    assert texts["linear_head"] == texts["finetune_encoder"] == [ENCODER]
    assert texts["zero_shot"] == texts["few_shot"] == texts["lora_decoder"] == [DECODER]
    assert "reads text" in str(strategy("zero_shot").refusal(task, EYES))
    pictures = takes(dataclasses.replace(task, kind="image"))
    assert pictures["image_baseline"] == [None, ENCODER, DECODER, EYES, BOTH] and pictures["small_cnn"] == [None]
    assert pictures["image_head"] == pictures["image_neighbours"] == [EYES, BOTH]
    assert pictures["image_zero_shot"] == pictures["image_lora"] == [BOTH]
    with pytest.raises(ConfigError, match="unknown strategy"):
        strategy("gpt")


def test_pictures_have_candidates_of_their_own(task: Task, tiny_clip_folder: Path, tiny_bert_folder: Path) -> None:
    pictures = dataclasses.replace(task, kind="image")
    models = [str(tiny_clip_folder), str(tiny_bert_folder)]
    chosen, skipped = list_candidates(pictures, models=models)
    assert not skipped and [c.id for c in chosen] == [
        "image_baseline", "image_zero_shot:clip", "image_neighbours:clip", "image_head:clip", "small_cnn", "image_lora:clip",
    ]  # fmt: skip
    assert [c.id for c in list_candidates(task, models=models)[0]] == [
        "baseline", "linear_head:model", "finetune_encoder:model",
    ]  # fmt: skip
    some = list_candidates(pictures, models=models, strategies=["image_head"])[0]
    assert [c.id for c in some] == ["image_baseline", "image_head:clip"]
    with pytest.raises(ConfigError, match="'linear_head': is for other data"):
        list_candidates(pictures, strategies=["linear_head"])
    limit = memory.estimate(sum(p.numel() for p in _module(tiny_clip_folder)), "lora") - 1
    skipped = list_candidates(pictures, models=models, max_memory=limit)[1]
    assert [s.candidate.id for s in skipped] == ["image_lora:clip"]


def test_weights_that_cannot_be_had_leave_the_others_in_the_race(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    models = [Candidate(strategy=kind, model="minilm-l6") for kind in ("linear_head", "finetune_encoder")]
    found, skipped = fetch([Candidate(strategy="baseline", model=None), *models])
    assert [c.id for c in found] == ["baseline"]
    assert [s.candidate for s in skipped] == models and all("pip" in s.reason for s in skipped)
