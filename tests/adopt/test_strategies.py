"""What a strategy saves predicts the same in a fresh process, in kiban and in the Hugging Face tool of its kind."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kiban
from kiban.adopt.strategies import BY_KIND, load_predictor, strategy
from kiban.adopt.strategies.base import Candidate, Job, Predictor, Rows, Task
from kiban.errors import FormatError, IntegrityError, KibanError
from kiban.files import write_manifest
from kiban.weights.folder import write_folder

NAMES = BY_KIND["single_label"]
ENCODERS, DECODERS = ("linear_head", "finetune_encoder"), ("zero_shot", "few_shot", "lora_decoder")
LONG = "長い文章です。数学とゲームの話が続きます。" * 60  # more tokens than any of the models takes
CHILD = """
import json, sys
from pathlib import Path
from kiban.adopt.strategies import load_predictor
texts, folders = json.loads(sys.stdin.read())
answers = {}
for name, folder in folders.items():
    predictor = load_predictor(Path(folder))
    answers[name] = [list(predictor.labels), predictor.predict(texts).tolist()]
print(json.dumps(answers))
"""
Saved = dict[str, tuple[Predictor, Path]]


def fit(name: str, model: Path | None, task: Task, rows: tuple[Rows, Rows, Rows], work: Path) -> Predictor:
    job = Job(
        task=task, candidate=Candidate(strategy=name, model=str(model) if model else None), train=rows[0],
        validation=rows[1], max_steps=4, seed=1, work=work,
    )  # fmt: skip
    return strategy(name).fit(job).predictor


@pytest.fixture(scope="module")
def saved(
    task: Task,
    rows: tuple[Rows, Rows, Rows],
    tiny_bert_folder: Path,
    tiny_llama_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Saved:
    """Each strategy's predictor in hand, and the folder that it was saved to."""
    root, found = tmp_path_factory.mktemp("strategies"), {}
    models = dict.fromkeys(ENCODERS, tiny_bert_folder) | dict.fromkeys(DECODERS, tiny_llama_folder)
    for name in NAMES:
        predictor = fit(name, models.get(name), task, rows, root / "work" / name)
        predictor.save(root / name)
        found[name] = (predictor, root / name)
    return found


@pytest.fixture(scope="module")
def texts(rows: tuple[Rows, Rows, Rows]) -> list[str]:
    return [*rows[2].inputs[:14], LONG, "!"]


@pytest.fixture(scope="module")
def fresh(saved: Saved, texts: list[str]) -> dict[str, Any]:
    """(labels, probabilities) by strategy, as a new process gives them from the files."""
    question = json.dumps((texts, {name: str(folder) for name, (_, folder) in saved.items()}))
    command = [sys.executable, "-c", CHILD]
    return dict(
        json.loads(subprocess.run(command, input=question, stdout=subprocess.PIPE, text=True, check=True).stdout)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_predicts_the_same(
    saved: Saved, fresh: dict[str, Any], texts: list[str], task: Task, name: str
) -> None:
    labels, probabilities = fresh[name]
    here = load_predictor(saved[name][1]).predict(texts)
    assert tuple(labels) == task.labels == saved[name][0].labels
    assert here.shape == (len(texts), 3) and np.allclose(here.sum(-1), 1)
    assert np.abs(here - probabilities).max() < 1e-6
    assert len(set(here.round(6)[:, 0])) > 5, "the answers hang on the text"
    in_hand = saved[name][0].predict(texts)
    # A prompted model may be asked in bf16 while candidates are chosen, but answers in fp32 once it is saved.
    tolerance = 0.1 if name in ("zero_shot", "few_shot") else 1e-6
    assert np.abs(here - in_hand).max() < tolerance


def same(saved: Saved, name: str, texts: list[str], theirs: NDArray[np.float64]) -> None:
    ours = load_predictor(saved[name][1]).predict(texts)
    assert np.abs(ours - theirs).max() < 1e-4
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def softmax(logits: Any) -> NDArray[np.float64]:
    return np.asarray(torch.as_tensor(logits).double().softmax(-1).numpy())


def test_the_baseline_opens_in_skops(saved: Saved, texts: list[str]) -> None:
    import skops.io

    path = saved["baseline"][1] / "model.skops"
    pipeline = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    assert list(pipeline.classes_) == [0, 1, 2]
    same(saved, "baseline", texts, pipeline.predict_proba(texts))


@pytest.mark.parametrize("name", ENCODERS)
def test_heads_open_in_sentence_transformers(saved: Saved, texts: list[str], name: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(saved[name][1]), device="cpu")
    same(saved, name, texts, softmax(model.encode(texts)))


def test_lora_opens_in_transformers(saved: Saved, texts: list[str], task: Task) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(saved["lora_decoder"][1])
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert [model.config.id2label[i] for i in range(3)] == list(task.labels)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        same(saved, "lora_decoder", texts, softmax(model(**batch).logits))


@pytest.mark.parametrize("name", ["zero_shot", "few_shot"])
def test_prompted_models_open_in_transformers(saved: Saved, texts: list[str], name: str) -> None:
    """Each label is scored after each prompt, one by one, without a cache and without padding."""
    from transformers import AutoModelForCausalLM

    predictor: Any = load_predictor(saved[name][1])
    model = AutoModelForCausalLM.from_pretrained(str(saved[name][1])).eval()

    @torch.no_grad()
    def score(prompt: list[int], choice: list[int]) -> float:
        logits = model(torch.tensor([[*prompt, *choice]])).logits[0, len(prompt) - 1 : -1].double()
        return float(logits.log_softmax(-1)[range(len(choice)), choice].mean())

    choices = predictor.prompt.choices()
    scores = np.asarray([[score(predictor.prompt_of(text), choice) for choice in choices] for text in texts])
    if name == "zero_shot":
        from kiban.generate.few_shot import CONTENT_FREE

        blank = [[score(predictor.prompt.build(text), choice) for choice in choices] for text in CONTENT_FREE]
        scores -= np.mean(blank, axis=0)
    same(saved, name, texts, softmax(scores))


@pytest.mark.weights
def test_a_head_on_minilm_opens_in_sentence_transformers(
    minilm_folder: Path, task: Task, rows: tuple[Rows, Rows, Rows], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    predictor = fit("linear_head", minilm_folder, task, rows, tmp_path / "work")
    predictor.save(tmp_path / "model")
    texts = [*rows[2].inputs, LONG, "A puzzle game for X11", ""]
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    same({"linear_head": (predictor, tmp_path / "model")}, "linear_head", texts, softmax(model.encode(texts)))
    right = predictor.predict(rows[0].inputs).argmax(-1) == np.asarray(rows[0].targets)
    assert right.mean() > 0.8


@pytest.mark.parametrize("name", [*ENCODERS, "baseline", "lora_decoder"])
def test_no_text_gives_no_answer(saved: Saved, name: str) -> None:
    assert saved[name][0].predict([]).shape == (0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_repeats_exactly_and_sees_no_other_rows(
    saved: Saved, task: Task, rows: tuple[Rows, Rows, Rows], texts: list[str], tmp_path: Path, name: str,
    tiny_bert_folder: Path, tiny_llama_folder: Path,
) -> None:  # fmt: skip
    torch.manual_seed(123)  # nothing may hang on the state of the process
    model = tiny_bert_folder if name in ENCODERS else tiny_llama_folder if name in DECODERS else None
    again = fit(name, model, task, rows, tmp_path / "work")
    assert np.array_equal(again.predict(texts), saved[name][0].predict(texts))
    assert torch.initial_seed() == 123


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_never_overwritten(saved: Saved, name: str) -> None:
    with pytest.raises(KibanError, match="exists already"):
        saved[name][0].save(saved[name][1])


def test_texts_are_cut_to_what_a_model_reads(
    task: Task, rows: tuple[Rows, Rows, Rows], tiny_bert_folder: Path, tmp_path: Path
) -> None:
    """An encoder of 24 positions, which is fewer than any strategy would read."""
    from kiban import zoo
    from kiban.families.bert import Bert

    loaded = zoo.load(tiny_bert_folder)
    config = dataclasses.replace(loaded.config, max_seq_len=24)
    module = zoo.initialise(Bert(config), torch.Generator().manual_seed(0))
    zoo.save(dataclasses.replace(loaded, config=config, module=module), tmp_path / "short")
    for name in ENCODERS:
        predictor: Any = fit(name, tmp_path / "short", task, rows, tmp_path / "work" / name)
        assert predictor.max_len == 24
        assert np.allclose(predictor.predict([LONG, LONG + "猫"])[0], predictor.predict([LONG])[0])


def test_steps_of_a_full_fit_grow_with_the_rows() -> None:
    steps = {name: [strategy(name).default_steps(rows) for rows in (1, 16, 17, 1600)] for name in NAMES}
    assert steps["finetune_encoder"] == [6, 6, 12, 600] and steps["lora_decoder"] == [3, 3, 6, 300]
    assert all(steps[name] == [0] * 4 for name in ("baseline", "linear_head", "zero_shot", "few_shot"))
    assert [name for name in NAMES if not strategy(name).learns] == ["zero_shot"]


def test_a_baseline_takes_texts_without_words(task: Task, tmp_path: Path) -> None:
    signs = Rows(inputs=["😀!", "?", "😀", "??", "!", "😡?"] * 5, targets=[0, 1, 0, 1, 0, 1] * 5)
    predictor = fit("baseline", None, dataclasses.replace(task, language="other"), (signs, signs, signs), tmp_path)
    found = predictor.predict(["😀😀", "???", "言葉", ""])
    assert found.shape == (4, 3) and found[:, 2].tolist() == [0.0] * 4, "a class without rows gets nothing"
    assert found[:2].argmax(-1).tolist() == [0, 1]


def tampered(folder: Path, content: bytes) -> Path:
    """A baseline's folder with another model.skops, whose manifest agrees with it."""
    write_folder(
        folder, tensors={}, config={"labels": ["a", "b"]}, files={"model.skops": content},
        manifest={"strategy": "baseline", "labels": ["a", "b"]},
    )  # fmt: skip
    return folder


def test_a_baseline_file_with_foreign_types_is_refused(tmp_path: Path) -> None:
    import skops.io
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    evil = Pipeline([("features", FunctionTransformer(subprocess.check_output)), ("classifier", "passthrough")])
    with pytest.raises(FormatError, match=r"types that a baseline does not use: subprocess\.check_output"):
        load_predictor(tampered(tmp_path / "evil", skops.io.dumps(evil)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."])
def test_a_baseline_file_that_is_no_skops_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"model\.skops: is not a skops file"):
        load_predictor(tampered(tmp_path / "model", content))


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved[name][1], folder)
    weights = next(folder.glob("model.*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match="has changed since it was written"):
        load_predictor(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_without_its_settings_is_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved[name][1], folder)
    (folder / "prompt.json").unlink(missing_ok=True)
    write_manifest(folder, {"strategy": name})
    with pytest.raises(FormatError):
        load_predictor(folder)


def test_a_folder_of_another_kind_is_refused(tiny_bert_folder: Path, tmp_path: Path) -> None:
    for folder in (tiny_bert_folder, tmp_path):
        with pytest.raises(FormatError, match="holds no adopted model"):
            load_predictor(folder)


def test_kiban_load_gives_labels(saved: Saved, texts: list[str]) -> None:
    for name, (predictor, folder) in saved.items():
        model = kiban.load(folder)
        expected = [predictor.labels[i] for i in load_predictor(folder).predict(texts).argmax(-1)]
        assert model.predict(texts) == expected, name
