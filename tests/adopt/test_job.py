"""The whole main job on a small real table: what it leaves, what it refuses, and that every number is the right one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

import kiban
from kiban.adopt.folder import Settings
from kiban.adopt.job import Look, adopt, look, preview, resume
from kiban.adopt.race import Race
from kiban.adopt.result import Result
from kiban.adopt.sources import open_source
from kiban.data.tables import read_table
from kiban.errors import BudgetError, ConfigError, DatasetError, IntegrityError, RequirementError


def looked(run: Any) -> Look:
    """What the run saw of its data."""
    settings = Settings.read(run.folder)
    return look(settings, open_source(Path(settings.source)))


def answers(run: Any, id: str) -> dict[str, Any]:
    """What was measured of a candidate."""
    path = run.folder / "candidates" / id.replace(":", "--") / "measured.json"
    return dict(json.loads(path.read_text("utf-8")))


def test_a_run_recommends_what_it_measured_and_leaves_it_ready(reference: Any, small_rows: Any) -> None:
    run = reference.run
    by_id = {c.id: c for c in run.result.candidates}
    assert set(by_id) == {
        "baseline", "linear_head:model", "finetune_encoder:model", "linear_head:broken", "finetune_encoder:broken",
    }  # fmt: skip
    assert all(by_id[id].status == "finished" for id in ("baseline", "linear_head:model", "finetune_encoder:model"))
    assert by_id["finetune_encoder:model"].steps == 6
    assert run.recommended is not None and run.result.recommendation.verdict == "decided"
    assert run.recommended.macro_f1.value > 0.7
    assert run.pareto()[0].cost_per_1k_yen == min(c.cost_per_1k_yen for c in run.pareto())
    texts = [text for text, _ in small_rows]
    assert np.mean([got == label for got, (_, label) in zip(run.model.predict(texts), small_rows)]) > 0.9
    assert kiban.load(run.folder).predict(texts[:3]) == run.model.predict(texts[:3])
    assert run.model.predict(texts[0]) == kiban.load(run.folder).predict(texts[0]) == run.model.predict(texts[:1])[0]
    assert abs(sum(run.model.predict_proba(texts[:1])[0].values()) - 1) < 1e-9
    left = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "report.html", "result.json", "final"} <= left
    assert not list(run.folder.glob("candidates/*/model")), "weights of losers are not kept"
    assert not list(run.folder.glob("candidates/*/work-*"))


def test_a_broken_candidate_is_told_and_does_not_end_the_race(reference: Any) -> None:
    failed = [c for c in reference.run.result.candidates if c.status == "failed"]
    assert {c.id for c in failed} == {"linear_head:broken", "finetune_encoder:broken"}
    assert all("model.safetensors" in c.reason and "has changed" in c.reason and c.macro_f1 is None for c in failed)


def test_scores_agree_with_scikit_learn(reference: Any) -> None:
    run, seen = reference.run, looked(reference.run)
    labels = range(len(seen.task.labels))
    for id in ("baseline", "linear_head:model", "finetune_encoder:model"):
        c, found = run.result.candidate(id), answers(run, id)
        probabilities, truth = np.asarray(found["probabilities"]), np.asarray(seen.rows[2].targets)
        predicted = probabilities.argmax(-1)
        assert c.test_rows == len(truth) == len(predicted)
        assert np.allclose(probabilities.sum(-1), 1)
        assert math.isclose(c.accuracy.value, accuracy_score(truth, predicted))
        assert math.isclose(c.macro_f1.value, f1_score(truth, predicted, average="macro"))
        assert c.accuracy.low <= c.accuracy.value <= c.accuracy.high
        assert np.array_equal(c.confusion, confusion_matrix(truth, predicted, labels=labels))
        for row, score in zip(c.per_class, zip(*precision_recall_fscore_support(truth, predicted, labels=labels))):
            assert np.allclose((row.precision, row.recall, row.f1, row.support), score)
        wrong = np.flatnonzero(truth != predicted)
        assert len(c.mistakes) == min(20, len(wrong))
        sure = sorted(probabilities[wrong].max(-1), reverse=True)
        assert np.allclose([m.confidence for m in c.mistakes], sure[: len(c.mistakes)])


def test_mistakes_name_the_line_of_the_table(reference: Any, small_rows: Any) -> None:
    for c in reference.run.result.candidates:
        for m in c.mistakes:
            assert small_rows[m.row - 2] == (m.text, m.truth)  # line 1 is the header
            assert m.predicted != m.truth


def test_costs_and_latencies_agree_with_the_timings(reference: Any) -> None:
    for c in reference.run.result.candidates:
        if c.status == "failed":
            continue
        times = answers(reference.run, c.id)["latencies"]
        assert len(times) >= 5
        assert math.isclose(c.p50_ms, 1000 * np.percentile(times, 50))
        assert math.isclose(c.p95_ms, 1000 * np.percentile(times, 95))
        assert math.isclose(c.cost_per_1k_yen, np.mean(times) * 1000 / 3600 * 15.0)
        assert math.isclose(c.cost_per_1k_usd, c.cost_per_1k_yen / 150.0)
        assert c.peak_memory_bytes > 50e6 and c.rows_per_second > 0


def test_comparisons_agree_with_the_exact_binomial_test(reference: Any) -> None:
    run, seen = reference.run, looked(reference.run)
    truth = np.asarray(seen.rows[2].targets)
    right = {c.id: np.asarray(answers(run, c.id)["probabilities"]).argmax(-1) == truth
             for c in run.result.candidates if c.macro_f1}  # fmt: skip
    assert len(run.result.comparisons) == 3
    for pair in run.result.comparisons:
        a, b = right[pair.a], right[pair.b]
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert math.isclose(pair.mcnemar_p, p)
        assert math.isclose(pair.accuracy_difference.value, a.mean() - b.mean(), abs_tol=1e-12)
        scores = [run.result.candidate(id).macro_f1.value for id in (pair.a, pair.b)]
        assert scores[0] >= scores[1] and math.isclose(pair.macro_f1_difference.value, scores[0] - scores[1])


def test_curves_agree_with_the_laps(reference: Any) -> None:
    run, seen = reference.run, looked(reference.run)
    laps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    c = run.result.candidate("baseline")
    mine = [lap for lap in laps if lap["id"] == "baseline"]
    assert [p.train_rows for p in c.curve] == [lap["train_rows"] for lap in mine] and len(mine) >= 2
    for point, lap in zip(c.curve, mine):
        truth = seen.rows[1].targets[: len(lap["predicted"])]
        assert math.isclose(point.macro_f1, f1_score(truth, lap["predicted"], average="macro"))


def test_a_run_is_written_and_read_without_loss(reference: Any) -> None:
    assert Result.read(reference.run.folder / "result.json") == reference.run.result


def test_resuming_a_finished_run_opens_it(reference: Any) -> None:
    stages: list[str] = []
    again = resume(reference.run.folder, progress=lambda *event: stages.append(event[0]))
    assert again.result == reference.run.result and not stages


def test_a_run_folder_is_never_overwritten(reference: Any, small_table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already.*--resume"):
        adopt(small_table, out=reference.run.folder)
    (tmp_path / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        adopt(small_table, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def unfinished(reference: Any, folder: Path, table: Path) -> Path:
    """A run folder on another table that was killed before its first lap."""
    folder.mkdir()
    settings = Settings.read(reference.run.folder)
    Settings(**{**settings.__dict__, "source": str(table)}).save(folder)
    return folder


def test_a_table_that_changed_is_refused_on_resume(reference: Any, small_table: Path, tmp_path: Path) -> None:
    table = tmp_path / "changed.csv"
    table.write_bytes(small_table.read_bytes() + "もう一行,ゲーム\r\n".encode())
    folder = unfinished(reference, tmp_path / "run", table)
    with pytest.raises(IntegrityError, match="is not the table that the run began with"):
        resume(folder)
    table.unlink()
    with pytest.raises(IntegrityError, match="is gone"):
        resume(folder)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        resume(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"require": "p95<300parsecs"}, RequirementError, "parsecs"),
        ({"seconds": None}, BudgetError, "time or a number of steps"),
        ({"seconds": -1.0}, BudgetError, "above 0"),
        ({"steps": 0}, BudgetError, "above 0"),
        ({"yen_per_usd": 0.0}, ConfigError, "yen_per_usd"),
        ({"sed": 1}, ConfigError, "did you mean 'seed'"),
        ({"label": "区"}, DatasetError, "did you mean '区分'"),
    ],
)
def test_a_wrong_setting_is_told_before_a_run_begins(
    small_table: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        adopt(small_table, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_preview_writes_and_fetches_nothing(
    small_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    before = sorted(small_table.parent.iterdir())
    seen = preview(small_table)
    assert seen.candidates[0].id == "baseline" and len(seen.candidates) >= 5
    assert not (tmp_path / "home").exists() and sorted(small_table.parent.iterdir()) == before
    assert sum((seen.splits.train, seen.splits.validation, seen.splits.test)) == 150


def test_a_frame_is_kept_and_a_text_may_name_one_strategy(small_rows: Any, tmp_path: Path) -> None:
    frame = polars.DataFrame({"text": [text for text, _ in small_rows], "label": [label for _, label in small_rows]})
    run = adopt(frame, out=tmp_path / "run", models=[], strategies="baseline", seconds=30.0)
    assert [c.id for c in run.result.candidates] == ["baseline"]
    assert run.result.recommendation.id == "baseline" and run.result.source == "table.jsonl"
    assert read_table(run.folder / "table.jsonl").column("text") == frame["text"].to_list()


def test_bad_rows_are_set_aside_and_a_budget_in_seconds_works(
    small_table: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "bad.csv"
    table.write_bytes(small_table.read_bytes() + b"one cell only\r\n\xff\xfe,x\r\n")
    settings: dict[str, Any] = {"models": [tiny_bert_folder], "strategies": ["finetune_encoder"], "seconds": 60.0}
    with pytest.raises(DatasetError, match="on-bad-row skip"):
        adopt(table, out=tmp_path / "run", **settings)
    run = adopt(table, out=tmp_path / "run", on_bad_row="skip", **settings)
    bad = [json.loads(line) for line in (run.folder / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert len(bad) == 2 and "has 1 cells" in bad[0]["why"]
    assert [f.values["rows"] for f in run.result.profile.findings if f.code == "bad_rows"] == [2]
    assert {c.id: c.status for c in run.result.candidates} == {
        "baseline": "finished", "finetune_encoder:model": "finished",
    }  # fmt: skip
    costs = json.loads((run.folder / "plan.json").read_text("utf-8"))["costs"]
    assert costs["finetune_encoder:model"]["step"] > 0 and costs["baseline"]["row"] > 0


def test_copies_of_a_few_texts_are_no_table(tmp_path: Path) -> None:
    rows = [{"text": ("雨が降る" if i % 2 else "the sun is out"), "label": "ab"[i % 2]} for i in range(40)]
    with pytest.raises(DatasetError, match="only 2 different texts"):
        adopt(rows, out=tmp_path / "run", models=())


def race_in(folder: Path, seen: Look) -> Race:
    from kiban.adopt.budget import Budget

    return Race(folder, seen.task, seen.rows, seen.candidates, Budget(steps=6), seed=3)


def test_a_damaged_log_of_laps_is_told(reference: Any, tmp_path: Path) -> None:
    seen = looked(reference.run)
    lines = (reference.run.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(lines) + lines[0][:40])  # a line that a kill cut is dropped, and the file mended
    assert len(race_in(tmp_path, seen).laps) == len(lines)
    assert path.read_bytes() == b"".join(lines)
    path.write_bytes(lines[0] + b"\0" * 30 + b"\n" + lines[1])
    with pytest.raises(kiban.errors.FormatError, match="line 2"):
        race_in(tmp_path, seen)


def test_a_race_does_not_go_on_with_other_candidates(reference: Any, tmp_path: Path) -> None:
    seen = looked(reference.run)
    shutil.copy(reference.run.folder / "plan.json", tmp_path)
    race = race_in(tmp_path, seen)
    race.plan()
    race.candidates.pop("baseline")
    with pytest.raises(IntegrityError, match="other candidates"):
        race.plan()
