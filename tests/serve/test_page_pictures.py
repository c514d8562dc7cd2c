"""The page with real models, as a new user meets it: `kiban adopt`, then `kiban serve`; the pictures are for people."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Tab, chromium
from kiban.serve.served import open_all

EXAMPLES = Path(__file__).parents[2] / "examples" / "data" / "debian-ja.csv"
ASKED = ("What is the capital of Japan?", "How do plants make their food?")


@pytest.fixture(scope="module")
def site(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A chat, an encoder, and the winner of a short race."""
    run = tmp_path_factory.mktemp("adopted") / "packages"
    command = ["adopt", EXAMPLES, "--text", "本文", "--label", "区分", "--strategies", "baseline", "--time", "1m"]
    subprocess.run([sys.executable, "-m", "kiban", *command, "--lang", "ja", "--out", run], check=True, timeout=280)
    models, trial = open_all(["smollm2-135m-instruct", str(run), "minilm-l6"])
    found = start(models, price_per_hour=50.0)
    yield found
    found.stop()
    trial.close()


def _ask(page: Any, questions: tuple[str, ...]) -> list[str]:
    page.locator("#chat-temperature").evaluate("e => e.value = 0")
    for i, question in enumerate(questions):
        page.locator("#chat-text").fill(question)
        page.locator("#chat-text").press("Enter")
        page.locator(".answer.done").nth(i).wait_for(timeout=120_000)
    return list(page.locator(".answer .text").all_text_contents())


def _classify(page: Any, rows: list[str]) -> None:
    page.locator("#classify-text").fill("\n".join(rows))
    page.locator("#classify-run").click()
    page.get_by_text(f"{len(rows)} 件を").wait_for()
    page.locator("#classify-text").evaluate("e => e.scrollTop = 0")


def _keep(page: Any, path: Path) -> None:
    page.screenshot(path=path)
    print(path)
    assert 10_000 < path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.timeout(900)  # a race on a busy machine
@pytest.mark.weights
def test_the_page_with_real_models_is_worth_a_picture(site: Any, tmp_path: Path) -> None:
    with EXAMPLES.open(encoding="utf-8", newline="") as file:
        sentences = [row["本文"].replace("\n", " ").split("。")[0] + "。" for row in csv.DictReader(file)]
    rows = [one for one in sentences if len(one) < 56][100:140]
    with chromium() as browser:
        tab = Tab(browser, site.url, {"color_scheme": "dark"})
        capital, plants = _ask(tab.open("chat"), ASKED)
        assert "Tokyo" in capital and "photosynthesis" in plants
        _keep(tab.page, tmp_path / "page-chat.png")
        tab.close()

        tab = Tab(browser, site.url, {"locale": "ja-JP", "viewport": {"width": 1100, "height": 1080}})
        page = tab.open("classify")
        _classify(page, rows)
        _keep(page, tmp_path / "page-classify.png")
        page.get_by_role("tab", name="レポート").click()
        page.frame_locator("#report-frame").get_by_text("基盤モデル選定レポート").first.wait_for()
        _keep(page, tmp_path / "page-report.png")
        tab.close()

        phone = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True}
        tab = Tab(browser, site.url, {"locale": "ja-JP", "has_touch": True, **phone})
        _classify(tab.open("classify"), rows)
        tab.page.locator("#classify-run").evaluate("e => e.scrollIntoView()")
        tab.page.evaluate("scrollBy(0, -12)")
        _keep(tab.page, tmp_path / "page-phone.png")
        tab.close()
