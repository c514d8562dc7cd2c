"""The whole main job on a folder of pictures: what it leaves, its report with thumbnails, and that it can be resumed."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kiban
from kiban.adopt.folder import Settings
from kiban.adopt.job import Adoption, adopt, look, preview, resume
from kiban.adopt.report import write_report
from kiban.adopt.report.names import STRATEGIES
from kiban.adopt.report.words import TEXT
from kiban.adopt.result import Result
from kiban.adopt.sources import open_source
from kiban.data.photos import in_folder
from kiban.errors import ConfigError, DatasetError, IntegrityError

ALL = {
    "image_baseline", "image_zero_shot:clip", "image_neighbours:clip", "image_head:clip", "small_cnn", "image_lora:clip",
}  # fmt: skip


class Words(html.parser.HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(photos: Path, tiny_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Adoption:
    out = tmp_path_factory.mktemp("image-run") / "run"
    return adopt(photos, out=out, steps=6, seed=3, models=[str(tiny_clip_folder)], lang="ja")


def test_a_run_measures_every_way_and_leaves_the_best_ready(run: Adoption, photos: Path) -> None:
    by_id = {c.id: c for c in run.result.candidates}
    assert set(by_id) == ALL and all(c.macro_f1 is not None for c in by_id.values())
    assert run.result.kind == "image" and run.result.source == "図形" and run.result.text_column == ""
    assert run.recommended is not None and run.recommended.macro_f1 and run.recommended.macro_f1.value > 0.5
    assert run.recommended.status == "finished" and by_id["image_baseline"].status == "finished"
    assert {c.id for c in by_id.values() if c.status == "stopped_early"}, "the worst half is stopped"
    left = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "report.html", "result.json", "final"} <= left
    assert not list(run.folder.glob("candidates/*/model")) and not list(run.folder.glob("candidates/*/work-*"))
    paths = [str(path) for path in sorted(photos.rglob("*.png"))]
    classes = [Path(path).parent.name for path in paths]
    found = kiban.load(run.folder).predict(paths)
    assert found == run.model.predict(paths) and np.mean([a == b for a, b in zip(found, classes)]) > 0.6
    assert Result.read(run.folder / "result.json") == run.result


def test_no_picture_is_learned_from_and_tested_on(run: Adoption, photos: Path) -> None:
    seen = look(Settings.read(run.folder), open_source(photos))
    parts = [set(rows.inputs) for rows in seen.rows]
    assert sum(map(len, parts)) == 120 == len(set.union(*parts))
    assert (len(seen.rows[2]), run.result.splits.test) == (30, 30)


def test_mistakes_show_their_pictures(run: Adoption, photos: Path) -> None:
    shown = 0
    for c in run.result.candidates:
        for m in c.mistakes:
            assert m.truth == m.text.partition("/")[0] != m.predicted and 0 < m.confidence <= 1
            small = Image.open(io.BytesIO(base64.b64decode(m.picture)))
            original = Image.open(photos / m.text).convert("RGB")
            assert small.format == "JPEG" and max(small.size) <= 96
            difference = np.abs(np.asarray(small.resize(original.size), float) - np.asarray(original, float)).mean()
            assert difference < 12, "it is this picture and no other"
            shown += 1
    assert shown > 20


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_the_report_has_thumbnails_and_nothing_from_outside(run: Adoption, tmp_path: Path, lang: Any) -> None:
    # The details of one that makes mistakes.
    wrong = max(run.result.candidates, key=lambda c: len(c.mistakes))
    shutil.copy(run.folder / "result.json", tmp_path)
    values = json.loads((tmp_path / "result.json").read_text("utf-8"))
    values["recommendation"]["id"] = wrong.id
    (tmp_path / "result.json").write_text(json.dumps(values), "utf-8")
    source = write_report(tmp_path, lang=lang).read_text("utf-8")
    words = Words(source)
    pictures = re.findall(r'src="([^"]+)"', source)
    assert len(pictures) == words.tags.count("img") == min(12, len(wrong.mistakes)) > 5
    assert all(re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", picture) for picture in pictures)
    assert "img-src data:" in source and "default-src 'none'" in source
    assert not re.search(r"""href\s*=|@import|url\(|<script|<link|on\w+=""", source.split("</style>", 1)[1])
    assert set(re.findall(r"https?://[^\s\"<]+", source)) <= {"http://www.w3.org/2000/svg"}
    for m in wrong.mistakes[:12]:
        assert m.text in words.text
    index = 0 if lang == "ja" else 1
    assert TEXT["mistakes_lead_image"][index] in words.text and TEXT["mistakes_lead"][index] not in words.text
    assert ("画像を判定・3区分・120枚" if lang == "ja" else "pictures into 3 classes, 120 pictures") in words.text
    assert all(STRATEGIES[c.strategy][lang][0] in words.text for c in run.result.candidates)
    not_tried = TEXT["missing_strategies"][index].split("{")[0].split("：")[0]
    assert not_tried not in words.text, "ways that are for texts are not missed"


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_cards_say_how_to_open_each_kind_of_model(run: Adoption, lang: Any) -> None:
    from kiban.adopt.report.card import model_card

    for c in run.result.candidates:
        card = model_card(run.result, c, lang=lang)
        assert "pipeline_tag: image-classification" in card and 'kiban.load("final").predict(["photo.jpg"])' in card
        assert "\n\n\n" not in card and "{%" not in card and "“”" not in card and "「」" not in card
        opener = {"image_baseline": "skops", "small_cnn": "pipeline(", "image_neighbours": "AutoModel"}
        assert opener.get(c.strategy, "AutoModel.from_pretrained") in card


def test_what_the_card_tells_to_run_gives_the_models_answer(
    run: Adoption, photos: Path, tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from kiban.adopt.report.card import model_card
    from kiban.adopt.strategies import strategy
    from kiban.adopt.strategies.base import Candidate, Job

    seen = look(Settings.read(run.folder), open_source(photos))
    monkeypatch.chdir(tmp_path)
    shutil.copy(seen.rows[2].inputs[0], "photo.jpg")
    for name in ("image_baseline", "image_head", "small_cnn"):
        model = str(tiny_clip_folder) if name == "image_head" else None
        job = Job(
            task=seen.task, candidate=Candidate(strategy=name, model=model), train=seen.rows[0],
            validation=seen.rows[1], max_steps=2, seed=0, work=tmp_path / "work" / name,
        )  # fmt: skip
        shutil.rmtree("final", ignore_errors=True)
        strategy(name).fit(job).predictor.save(Path("final"))
        candidate = next(c for c in run.result.candidates if c.strategy == name)
        blocks = re.findall(r"```python\n(.*?)```", model_card(run.result, candidate, lang="en"), flags=re.DOTALL)
        (expected,) = kiban.load("final").predict(["photo.jpg"])
        for code in blocks[1:]:
            capsys.readouterr()
            exec(compile(code, name, "exec"), {})
            assert expected in capsys.readouterr().out
        assert len(blocks) == 2


def test_a_finished_run_opens_and_an_unfinished_one_needs_the_same_pictures(
    run: Adoption, photos: Path, tmp_path: Path
) -> None:
    assert resume(run.folder).result == run.result
    mine = tmp_path / "図形"
    shutil.copytree(photos, mine)
    folder = tmp_path / "run"
    folder.mkdir()
    Settings(**{**Settings.read(run.folder).__dict__, "source": str(mine)}).save(folder)
    shutil.copy(mine / "cross" / "01.png", mine / "cross" / "00.png")
    with pytest.raises(IntegrityError, match="is not the set of pictures that the run began with"):
        resume(folder)
    shutil.rmtree(mine)
    with pytest.raises(IntegrityError, match="is gone"):
        resume(folder)


def test_a_table_of_paths_is_a_folder_of_pictures_too(photos: Path, run: Adoption, tmp_path: Path) -> None:
    table = photos.parent / "list.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = [(f"図形/{place.name}", place.label) for place in in_folder(photos)]
        csv.writer(file).writerows([("file_name", "label"), *rows])
    settings: dict[str, Any] = {"models": [], "strategies": "image_baseline", "seed": 3}
    assert preview(table, **settings).rows == preview(photos, **settings).rows
    frame = [{"file_name": str(photos / place.name), "label": place.label} for place in in_folder(photos)]
    by_frame = adopt(frame, out=tmp_path / "frame", steps=6, **settings)
    baselines = [one.result.candidate("image_baseline") for one in (by_frame, run)]
    assert baselines[0].confusion == baselines[1].confusion
    assert (by_frame.result.text_column, by_frame.result.label_column) == ("file_name", "label")
    assert "--text file_name --label label" in by_frame.result.command and "--text" not in run.result.command


def test_broken_pictures_are_left_out_if_asked_and_hostile_names_are_shown(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    evil = '<img src=x onerror="alert(1)">'
    (tmp_path / "photos" / "cross").rename(tmp_path / "photos" / evil)
    (tmp_path / "photos" / evil / "broken.jpg").write_bytes(b"x")
    settings: dict[str, Any] = {"models": [], "strategies": "image_baseline", "seconds": 30.0}
    with pytest.raises(DatasetError, match=r"broken.jpg'.*--on-bad-row skip"):
        adopt(tmp_path / "photos", out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
    run = adopt(tmp_path / "photos", out=tmp_path / "run", on_bad_row="skip", **settings)
    found = [f.values["name"] for f in run.result.profile.findings if f.code == "bad_pictures"]
    assert found == [f"{evil}/broken.jpg"]
    assert "broken.jpg" in (run.folder / "quarantine.jsonl").read_text("utf-8")
    words = Words((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert evil in words.text and words.tags.count("img") == min(12, len(run.result.candidates[0].mistakes))


def test_a_preview_lists_the_ways_and_writes_nothing(photos: Path, tiny_clip_folder: Path) -> None:
    before = sorted(photos.parent.rglob("*"))
    seen = preview(photos, models=[str(tiny_clip_folder)])
    assert {c.id for c in seen.candidates} == ALL and seen.task.kind == "image"
    assert sorted(photos.parent.rglob("*")) == before
    with pytest.raises(ConfigError, match="'linear_head': is for other data"):
        preview(photos, strategies=["linear_head"])


def test_one_class_or_no_pictures_are_told(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "cross", tmp_path / "one" / "cross")
    with pytest.raises(DatasetError, match="has one value only"):
        adopt(tmp_path / "one", out=tmp_path / "run", models=[])
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="holds no pictures"):
        adopt(tmp_path / "none", out=tmp_path / "none-run", models=[])
    for number in range(40):
        for name in ("a", "b"):
            path = tmp_path / "copies" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / "cross" / "00.png" if name == "a" else photos / "circle" / "00.png", path)
    with pytest.raises(DatasetError, match="only 2 different pictures"):
        adopt(tmp_path / "copies", out=tmp_path / "copies-run", models=[])
