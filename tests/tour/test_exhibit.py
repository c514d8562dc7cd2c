"""Seeds, intervals, bars and the run folder, with exhibits that measure in no time; stopping in training for real."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban.config import Progress
from kiban.errors import ConfigError, FormatError, KibanError, NonFiniteError
from kiban.tour.exhibit import Bar, Estimate, Exhibit, Requirement, exhibits, find, shown
from kiban.tour.page import asked, line, picture
from kiban.tour.running import run


@dataclass(frozen=True, kw_only=True)
class Setting:
    base: float = 50.0


class Counted:
    """Measures base + 1, + 2, + 4 for seeds 0, 1, 2; remembers which seeds it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, settings: Any, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
        self.asked.append(seed)
        folder.mkdir(exist_ok=True)
        (folder / "half").write_text("done")
        progress("train", 1, 1)
        return {"score": settings.base + 2.0**seed, "ablation": 10.0}


def make(measure: Any, **changes: Any) -> Exhibit:
    values: dict[str, Any] = {
        "name": "made-up",
        "title": {"ja": "見本", "en": "Made up"},
        "shows": {"ja": "何も学習しない。", "en": "Nothing is learned."},
        "full": Setting(),
        "quick": Setting(base=20.0),
        "measure": measure,
        "requirements": (
            Requirement("score", {"ja": "得点", "en": "score"}, at_least=45),
            Requirement("ablation", {"ja": "対照", "en": "ablation"}, at_most=10),
        ),
        "columns": ({"ja": "", "en": ""}, {"ja": "得点", "en": "score"}, {"ja": "対照", "en": "ablation"}),
        "rows": (({"ja": "一行", "en": "a row"}, ("score", None)),),
        "draw": lambda axes, found, lang: line(axes, [found["score"], None], style="o-", label="score"),
        "headline": {"ja": "得点 {score:.1f}", "en": "score {score:.1f}"},
    }
    return Exhibit(**{**values, **changes})


def test_the_interval_is_students() -> None:
    found = Estimate.of([1.0, 2.0, 3.0])
    # t(0.975; 2) = 4.302653, from the tables; the standard error is 1 / sqrt(3).
    assert found.value == 2.0 and found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert found.low == pytest.approx(4.0 - found.high)
    assert Estimate.of([5.0, 5.0]).low == Estimate.of([5.0, 5.0]).high == 5.0
    alone = Estimate.of([7.0])
    assert (alone.value, alone.low, alone.high) == (7.0, -math.inf, math.inf)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    draws = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).tolist()
    held = sum(found.low <= 0.0 <= found.high for found in map(Estimate.of, draws)) / 2000
    assert 0.935 < held < 0.965  # three standard errors


@pytest.mark.parametrize(
    ("seeds", "limit", "passed"),
    [
        ([50.0, 51.0, 52.0], {"at_least": 45.0}, True),
        ([45.5, 47.0, 48.5], {"at_least": 45.0}, False),  # the mean clears it, the interval does not
        ([50.0, 51.0], {"at_least": 1.0}, False),  # two seeds are too few
        ([5.0, 5.5, 6.0], {"at_most": 10.0}, True),
        ([5.0, 9.0, 13.0], {"at_most": 10.0}, False),
        ([-3.0, -2.5, -2.0], {"at_most": 0.0}, True),
        ([10.0, 10.0, 10.0], {"at_most": 10.0}, True),
    ],
)
def test_a_bar_is_cleared_by_the_whole_interval(seeds: list[float], limit: dict[str, float], passed: bool) -> None:
    bar = Bar.of(Requirement("score", {"ja": "得点", "en": "score"}, **limit), Estimate.of(seeds))
    assert bar.passed is passed


def test_a_bar_has_one_side() -> None:
    for sides in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(AssertionError):
            Requirement("score", {"ja": "", "en": ""}, **sides)


def test_a_run_leaves_a_record_a_page_and_a_picture(tmp_path: Path) -> None:
    outcome = run(make(Counted()), tmp_path / "run")
    # 51, 52, 54 deviate by 1.53: the interval begins at 52.33 - 4.30 * 1.53 / sqrt(3) = 48.5. The ablation is met exactly.
    assert outcome.passed and outcome.bars[0].low == pytest.approx(48.5, abs=0.1)
    record = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert record["measures"]["score"]["seeds"] == [51.0, 52.0, 54.0]
    assert record["measures"]["score"]["value"] == pytest.approx(157 / 3)
    assert record["settings"] == {"base": 50.0} and record["quick"] is False and record["environment"]["torch"]
    assert outcome.plot.read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert "score 52.3" in page and "| a row | 52.3 (" in page and "plots/made-up.png" in page
    assert not (tmp_path / "run" / "seeds" / "seed-0").exists()  # what training left


def test_the_page_speaks_japanese(tmp_path: Path) -> None:
    outcome = run(make(Counted()), tmp_path / "実行", quick=True, lang="ja")
    page = (tmp_path / "実行" / "README.md").read_text("utf-8")
    assert "見本" in page and "得点 22.3" in page and "縮小した実行" in page and "未達: 得点" in page
    assert outcome.headline("en") == "score 22.3"
    assert outcome.table("ja") == (["", "得点", "対照"], [["一行", shown(outcome.estimates["score"]), ""]])


def test_seeds_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    first, second = Counted(), Counted()
    run(make(first), tmp_path, seeds=2)
    outcome = run(make(second), tmp_path, seeds=4)
    assert (first.asked, second.asked) == ([0, 1], [2, 3])
    assert outcome.estimates["score"].seeds == (51.0, 52.0, 54.0, 58.0) and len(outcome.seconds) == 4


def test_what_was_measured_survives_a_later_failure(tmp_path: Path) -> None:
    class Stopped(Counted):
        def __call__(self, settings: Any, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
            if seed == 1:
                raise KeyboardInterrupt
            return super().__call__(settings, seed=seed, folder=folder, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run(make(Stopped()), tmp_path)
    rest = Counted()
    run(make(rest), tmp_path)
    assert rest.asked == [1, 2]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run(make(Counted()), tmp_path / "a")
    for other in (make(Counted(), name="another"), make(Counted(), full=Setting(base=51.0))):
        with pytest.raises(ConfigError, match="other settings"):
            run(other, tmp_path / "a")
    with pytest.raises(ConfigError, match="other settings"):
        run(make(Counted()), tmp_path / "a", quick=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        run(make(Counted()), tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.tex"]


def test_a_spoilt_measurement_is_told(tmp_path: Path) -> None:
    run(make(Counted()), tmp_path)
    (tmp_path / "seeds" / "seed-1.json").write_text('{"measures": {}}', "utf-8")
    with pytest.raises(FormatError, match=r"seed-1\.json"):
        run(make(Counted()), tmp_path)


def test_what_is_no_number_is_an_error_and_not_kept(tmp_path: Path) -> None:
    def sick(settings: Any, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
        return {"score": math.nan, "ablation": 0.0}

    with pytest.raises(NonFiniteError, match="score"):
        run(make(sick), tmp_path)
    assert not list((tmp_path / "seeds").glob("*.json"))


def test_one_seed_has_no_interval_and_passes_nothing(tmp_path: Path) -> None:
    outcome = run(make(Counted()), tmp_path, seeds=1)
    assert not any(bar.passed for bar in outcome.bars) and shown(outcome.bars[0]) == "51.0 (–)"
    record = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert record["bars"][0]["low"] is None and record["bars"][0]["value"] == 51.0
    assert "fewer than 3 seeds" in (tmp_path / "README.md").read_text("utf-8")


def test_large_numbers_are_whole_and_limits_are_written_out() -> None:
    bar = Bar.of(Requirement("n", {"ja": "", "en": ""}, at_least=1e6), Estimate.of([1_043_744.0] * 3))
    assert shown(bar) == "1,043,744 (1,043,744 – 1,043,744)"
    assert asked(bar, "en") == "at least 1,000,000" and asked(bar, "ja") == "1,000,000 以上"


def test_a_picture_can_be_drawn_in_either_language(tmp_path: Path) -> None:
    outcome = run(make(Counted()), tmp_path / "run")
    for lang in ("ja", "en"):
        picture(outcome, lang, tmp_path / f"{lang}.png")  # a missing glyph would be a warning
        assert (tmp_path / f"{lang}.png").stat().st_size > 5000


def test_exhibits_are_found_by_the_name_of_their_file() -> None:
    found = exhibits()
    assert "gpt" in found and all(name == exhibit.name for name, exhibit in found.items())
    assert find("gpt") is found["gpt"]
    for wrong in ("gtp", "running", "../gpt", ""):
        with pytest.raises(ConfigError, match="not on the tour"):
            find(wrong)


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_every_exhibit_says_all_it_must_in_both_languages(lang: Any) -> None:
    for exhibit in exhibits().values():
        assert exhibit.title[lang] and exhibit.shows[lang] and exhibit.headline[lang]
        assert all(asked.name[lang] for asked in exhibit.requirements)
        assert all(len(cells) == len(exhibit.columns) - 1 for _, cells in exhibit.rows)
        assert replace(exhibit.full) == exhibit.full != exhibit.quick


def _trained(folder: Path, progress: Callable[[str, int, int | None], None]) -> torch.Tensor:
    import numpy as np

    from kiban.tour.gpt import Setting as GPTSetting
    from kiban.tour.gpt import draw_tables, train

    settings = GPTSetting(dim=32, steps=130, batch_size=4)
    tables = draw_tables(settings, np.random.default_rng(0))
    return train(settings, tables, 0, folder, progress).embed.weight.detach().clone()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_training_that_a_signal_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 110:
            os.kill(os.getpid(), signal.SIGTERM)

    steps: list[int] = []
    with pytest.raises(KibanError, match="stopped by a signal"):
        _trained(tmp_path / "stopped", stop)
    resumed = _trained(tmp_path / "stopped", lambda stage, done, total: steps.append(done))
    assert min(steps) > 100
    assert torch.equal(resumed, _trained(tmp_path / "whole", lambda stage, done, total: None))
