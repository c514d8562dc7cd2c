"""What the page is made of, and its routes; `test_page.py` has it in a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kiban.generate.stoppable import Trial
from kiban.serve.pages import FILES
from kiban.serve.served import open_served

FOLDER = Path(__file__).parents[2] / "src" / "kiban" / "serve" / "page"


def test_links_to_reports_end_and_are_for_one_report(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = live.get("/v1/reports/adopt-words").json()["url"]
    answer = live.get(url)
    assert answer.text == "<p>report</p>" and answer.headers["content-security-policy"].endswith("; sandbox")
    assert answer.headers["cache-control"] == "no-store"
    for wrong in (url.replace("adopt-words", "lm"), url[:-1] + ("0" if url[-1] != "0" else "1"), "/report"):
        assert live.get(wrong).status_code == 403
    until = int(re.search(r"until=(\d+)", url)[1])  # type: ignore[index]
    assert live.get(url.replace(str(until), str(until + 1))).status_code == 403
    monkeypatch.setattr("kiban.serve.pages.SECONDS", -1)
    assert live.get(live.get("/v1/reports/adopt-words").json()["url"]).status_code == 403  # it has ended already
    for name in ("tiny-chat", "nothing"):
        assert live.get(f"/v1/reports/{name}").status_code == 404


def test_a_key_sees_its_own_usage_and_an_overseer_all(
    serve: Any, baseline_folder: Path, trial: Trial, keys_file: Any
) -> None:
    path, keys = keys_file(alice={"monthly_budget": 2.0}, bob={}, boss={"sees_all": True})
    models = {"adopt-words": open_served(str(baseline_folder), "adopt-words", trial)}
    live = serve(models, keys=path, price_per_hour=3600.0)
    for name in ("alice", "bob", "bob"):
        assert live.post("/v1/classify", {"model": "adopt-words", "input": "猫"}, key=keys[name]).status_code == 200
    seen = {name: live.get("/v1/usage", key=key).json() for name, key in keys.items()}
    assert [(row["key"], row["requests"]) for row in seen["alice"]["data"]] == [("alice", 1)]
    assert [(row["key"], row["requests"]) for row in seen["bob"]["data"]] == [("bob", 2)]
    assert [row["key"] for row in seen["boss"]["data"]] == ["alice", "bob"] and seen["bob"]["budgets"] == []
    budget = {"key": "alice", "monthly_budget": 2.0, "spent": seen["alice"]["data"][0]["cost"]}
    assert budget["spent"] > 0 and seen["alice"]["budgets"] == seen["boss"]["budgets"] == [budget]
    assert live.get("/v1/usage").status_code == 401


def test_every_file_of_the_page_is_served_with_a_strict_policy(live: Any) -> None:
    assert {name for name, _ in FILES.values()} == {file.name for file in FOLDER.iterdir()}
    for path, (name, kind) in FILES.items():
        answer = live.get(path)
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"


def test_all_words_are_there_in_both_languages() -> None:
    texts = {file.name: file.read_text("utf-8") for file in FOLDER.iterdir()}
    words = dict(re.findall(r"^  (\w+): \[\s*(.*?)\s*\],?$", texts["words.js"], re.S | re.M))
    pairs = {key: re.findall(r'"([^"]+)"', pair) for key, pair in words.items()}
    assert len(pairs) > 90 and all(len(pair) == 2 for pair in pairs.values())
    for key, (ja, en) in pairs.items():
        assert set(re.findall(r"{\w+}", ja)) == set(re.findall(r"{\w+}", en)), key
    for name, text in texts.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?://(?!www\.w3\.org)", text
        ), name
    used = set(re.findall(r'data-(?:say|label|hint|title)="(\w+)"', texts["index.html"]))
    scripts = "\n".join(text for name, text in texts.items() if name.endswith(".js") and name != "words.js")
    assert used <= set(pairs)
    assert set(pairs) <= used | set(re.findall(r'"(\w+)"', scripts))
