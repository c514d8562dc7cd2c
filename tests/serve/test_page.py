"""The page at `/`, in a real browser, with a real server."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from browser import Tab, chromium
from kiban import zoo
from kiban.adopt.strategies import strategy
from kiban.adopt.strategies.base import Candidate, Job, Rows, Task
from kiban.families.llama import Llama
from kiban.generate.stoppable import Trial
from kiban.serve.served import Served, open_served, writer

MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
FORMULA = "=HYPERLINK(1)"
REPORT = f"""<!doctype html><meta charset="utf-8"><style>h1{{color:rgb(1,2,3)}}</style>
<h1 style="margin:7px">報告</h1><p id="quote">unchanged</p>{MARKUP}
<script>document.getElementById("quote").textContent = parent.location</script>
<form action="/v1/models"><button>send</button></form><a target="_top" href="/v1/models">leave</a>"""
LONG = "document.querySelector('#chat-temperature').value = 0, document.querySelector('#chat-max').value = 60000"

CONTRASTS = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const shares = [0.2126, 0.7152, 0.0722];
  const light = (color) => shares.reduce((sum, share, i) => sum + share * linear(parts(color)[i] / 255), 0);
  const back = (e) => {
    const color = getComputedStyle(e).backgroundColor;
    return parts(color)[3] === 0 ? back(e.parentElement) : color;
  };
  const says = (e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")].filter(says).map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(back(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 40)];
  });
}"""


@pytest.fixture(scope="module")
def models(
    chat_model: zoo.Loaded,
    baseline_folder: Path,
    tiny_bert_folder: Path,
    trial: Trial,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Served]:
    """What the page can use: a writer, an encoder, and two runs, one of which is about markup and has an evil report."""
    folder = tmp_path_factory.mktemp("page") / "marked" / "final"
    rows = Rows(inputs=[f"{word} {i}" for i in range(8) for word in ("tag", "sum")], targets=[0, 1] * 8)
    task = Task(kind="single_label", labels=(MARKUP, FORMULA), language="en", length_p95=20)
    job = Job(
        task=task, candidate=Candidate(strategy="baseline", model=None), train=rows, validation=rows, max_steps=0, seed=0,
        work=folder.parent / "work",
    )  # fmt: skip
    strategy("baseline").fit(job).predictor.save(folder)
    (folder.parent / "report.html").write_text(REPORT, "utf-8")
    paths = {"adopt-words": baseline_folder, "marked": folder, "tiny-encoder": tiny_bert_folder}
    opened = {name: open_served(str(path), name, trial) for name, path in paths.items()}
    config = dataclasses.replace(chat_model.config, max_seq_len=2**16)  # an answer can be stopped on any machine
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(0)).eval()
    long = dataclasses.replace(chat_model, config=config, module=module)
    return {**opened, "tiny-chat": writer("tiny-chat", long, trial, speculate=False)}


@pytest.fixture(scope="module")
def site(start: Callable[..., Any], models: dict[str, Served]) -> Iterator[Any]:
    """A server without keys, with a price."""
    found = start(models, price_per_hour=3600.0)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """tab(url, **options of the context): a page that has to end without an error."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> Tab:
            found = Tab(browser, url, options)
            stack.callback(found.close)
            return found

        yield make


def say(page: Any, text: str) -> Any:
    """Send a text; the answer, when it is whole."""
    page.locator("#chat-text").fill(text)
    page.locator("#chat-text").press("Enter")
    answer = page.locator(".answer").last
    page.locator(".answer.done").nth(page.locator(".answer").count() - 1).wait_for()
    return answer


def answers(page: Any, text: str) -> str:
    return str(say(page, text).locator(".text").text_content())


def grown(text: Any, length: int) -> None:
    """Wait until so much stands there."""
    text.and_(text.page.get_by_text(re.compile(f"^.{{{length}}}", re.S))).wait_for()


def holds(field: Any, value: str) -> None:
    """Wait until this stands in the field."""
    handle = field.element_handle()
    field.page.wait_for_function("([field, value]) => field.value === value", arg=[handle, value])


def wait(condition: Callable[[], Any], page: Any) -> None:
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it has not come in 10 s")


def test_a_chat_streams_stops_and_goes_on(site: Any, tab: Any) -> None:
    page = tab(site.url).open("chat")
    assert page.locator("#chat-model").input_value() == "tiny-chat"
    page.evaluate(LONG)
    page.locator("#chat-text").fill("first")
    page.locator("#chat-text").press("Enter")
    text = page.locator(".answer .text")
    grown(text, 20)
    early = len(text.text_content())
    grown(text, early + 1)  # it streams
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped").wait_for()
    assert site.idle(30) < 30 and len(text.text_content()) < 50_000
    page.evaluate("document.querySelector('#chat-max').value = 12")
    foot = say(page, "second\nline").locator(".foot").text_content()
    assert "12 out" in foot and "tokens/s" in foot and re.search(r"\d JPY", foot) and "Reached the maximum" in foot
    asked = int(re.search(r"([\d,]+) tokens in", foot)[1].replace(",", ""))
    assert asked > early + len("firstsecond line")  # it was told what went before
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".turn").count() == 0 and page.locator("#chat-hello").is_visible()


def test_shift_enter_and_an_input_methods_enter_do_not_send(site: Any, tab: Any) -> None:
    page = tab(site.url, locale="ja-JP").open("chat")
    box = page.locator("#chat-text")
    box.press("a")
    box.press("Shift+Enter")
    box.press("b")
    assert box.input_value() == "a\nb"
    box.fill("")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Input.imeSetComposition", {"text": "日本", "selectionStart": 2, "selectionEnd": 2})
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    devtools.send("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
    devtools.send("Input.insertText", {"text": "日本"})  # the word is chosen
    assert page.locator(".turn").count() == 0 and box.input_value() == "日本"
    box.press("Enter")
    assert page.locator(".said").text_content() == "あなた日本"


def test_markup_stays_text(site: Any, tab: Any) -> None:
    page = tab(site.url).open("chat")
    page.locator("#chat-model").select_option("marked")
    assert answers(page, f"tag {MARKUP}") == MARKUP  # a classifier answers with its label
    page.get_by_role("tab", name="Classify").click()
    page.locator("#classify-model").select_option("marked")
    page.locator("#classify-text").fill(f"tag {MARKUP}")
    page.locator("#classify-run").click()
    page.get_by_text("1 classified").wait_for()
    assert MARKUP in page.locator("#classify-rows").text_content() + page.locator("#classify-about").text_content()
    page.get_by_role("tab", name="Similar").click()
    page.locator("#similar-text").fill(MARKUP)
    page.locator("#similar-lines").fill(f"{MARKUP}\nother")
    page.get_by_role("button", name="Find").click()
    assert page.locator(".closest li span").first.text_content() == MARKUP
    assert page.locator(".closest b").first.text_content() == "1.000"
    assert page.locator("main img, main script").count() == 0 and page.evaluate("window.hacked") is None


def test_pasted_rows_and_tables_are_classified_and_saved(site: Any, tab: Any, tmp_path: Path) -> None:
    page = tab(site.url, locale="ja-JP").open("classify")
    page.locator("#classify-text").fill("猫が好き\n\n請求書の再発行をお願いします\n猫が好きです")
    page.get_by_role("button", name="分類する").click()
    page.get_by_text("3 件を").wait_for()
    cells = page.locator("#classify-rows td").all_text_contents()
    assert cells[1:3] == ["猫が好き", "動物"] and cells[6] == "請求" and cells[8:11] == ["3", "猫が好きです", "動物"]
    assert page.locator("#classify-counts").text_content().replace(" ", "") == "動物266.7%請求133.3%"

    table = [["番号", "本文"], ["-7", '猫が"好き",\nとても'], ["=1+1", "請求書の再発行"], ["x", ""]]
    table += [[str(i), "猫が好き"] for i in range(60)]
    with (tmp_path / "問い合わせ.csv").open("w", encoding="cp932", newline="") as file:
        csv.writer(file).writerows(table)
    page.locator("#classify-input").set_input_files(tmp_path / "問い合わせ.csv")
    page.get_by_text("63 行", exact=True).wait_for()  # a file is read in the background
    assert page.locator("#classify-column").evaluate("e => e.selectedOptions[0].text") == "本文"
    page.get_by_role("button", name="分類する").click()
    page.get_by_text("62 件を").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSVで保存").click()
    assert download.value.suggested_filename == "問い合わせ-kiban.csv"
    saved = Path(download.value.path()).read_bytes()
    assert saved.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(saved.decode("utf-8-sig"), newline="")))
    assert rows[0] == ["番号", "本文", "区分", "確率"] and len(rows) == 64
    assert rows[1][:3] == ["-7", '猫が"好き",\nとても', "動物"] and rows[2][:3] == ["'=1+1", "請求書の再発行", "請求"]
    assert rows[3] == ["x", "", "", ""] and all(0.5 < float(row[3]) <= 1 for row in rows[4:])


def test_tables_are_read_as_people_have_them(site: Any, tab: Any) -> None:
    """Also what is written for Excel begins with nothing that it calculates."""
    page = tab(site.url).open("classify")
    run = "async ([name, argument]) => { const it = await import('./page/csv.js'); return %s; }"

    def decoded(raw: bytes) -> str:
        return str(page.evaluate(run % "it.decode(new Uint8Array(argument).buffer)", ["", list(raw)]))

    assert decoded("\ufeff猫".encode()) == decoded("猫".encode()) == decoded("猫".encode("cp932")) == "猫"
    assert decoded("猫".encode("utf-16")) == "猫"
    parsed = lambda text: page.evaluate(run % "it.parse(argument)", ["", text])  # noqa: E731
    assert parsed('a,b\r\n"1,\n""2""",3\r\n\r\n') == [["a", "b"], ['1,\n"2"', "3"]]
    assert parsed("a\tb, c\n1\t2") == [["a", "b, c"], ["1", "2"]] and parsed("a;b\r1;2") == [["a", "b"], ["1", "2"]]
    assert parsed('one\nsay "hi" now') == [["one"], ['say "hi" now']] and parsed("\n \n") == [[" "]]
    cells = ["=1", "+a", "-b", "@c", "\td", "＝1", "-1.5", "+81", "3,000", "a=b", 'q"', "l\nm"]
    text = page.evaluate(run % "it.write([argument]).text()", ["", cells])
    (row,) = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    assert row == ["'=1", "'+a", "'-b", "'@c", "'\td", "'＝1", *cells[6:]]


def test_a_file_that_is_no_table_and_nothing_at_all_are_told(site: Any, tab: Any, tmp_path: Path) -> None:
    page = tab(site.url).open("classify")
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_text("There is no text to classify").wait_for()
    (tmp_path / "photo.csv").write_bytes(b"\x89PNG\xff\xfe\xfd" * 10)
    page.locator("#classify-input").set_input_files(tmp_path / "photo.csv")
    page.get_by_text("neither UTF-8 nor Shift_JIS").wait_for()
    (tmp_path / "lines.txt").write_text("猫が好き\n請求書", "utf-8")
    page.locator("#classify-input").set_input_files(tmp_path / "lines.txt")
    holds(page.locator("#classify-text"), "猫が好き\n請求書")


def test_a_report_is_shown_and_can_do_nothing(site: Any, tab: Any) -> None:
    found = tab(site.url)
    page = found.open("report")
    page.frame_locator("#report-frame").get_by_text("report", exact=True).wait_for()
    assert not found.wrong
    page.locator("#report-model").select_option("marked")
    frame = page.frame_locator("#report-frame")
    title = frame.get_by_text("報告")
    title.wait_for()
    assert title.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).marginLeft]") == ["rgb(1, 2, 3)", "7px"]
    frame.get_by_role("link", name="leave").click()
    frame.get_by_role("button", name="send").click()
    assert frame.locator("#quote").text_content() == "unchanged" and page.evaluate("window.hacked") is None
    assert page.url == f"{site.url}/#report" and len(page.frames) == 2
    wait(lambda: found.wrong, page)  # the frame's process tells in its own time
    assert all("sandbox" in one or "Content Security Policy" in one for one in found.wrong), found.wrong
    found.wrong.clear()
    with page.context.expect_page() as opened:
        page.get_by_role("button", name="new tab").click()
    opened.value.get_by_text("報告").wait_for()
    assert opened.value.locator("#quote").text_content() == "unchanged"
    found.wrong.clear()


def test_usage_is_shown_by_key_and_model(site: Any, tab: Any) -> None:
    site.post("/v1/classify", {"model": "marked", "input": ["tag"]})
    page = tab(site.url).open("usage")
    rows = page.locator("#usage-rows tr")
    rows.first.wait_for()
    before = {row.split("\t")[1]: row.split("\t") for row in rows.evaluate_all("rows => rows.map(r => r.innerText)")}
    site.post("/v1/classify", {"model": "marked", "input": ["tag"]})
    page.get_by_role("button", name="Refresh").click()
    number = int(before["marked"][2].replace(",", "")) + 1
    page.get_by_role("row", name=f"local marked {number:,}").wait_for()
    assert page.get_by_role("row", name=f"local marked {number:,}").text_content().endswith("JPY")
    assert re.fullmatch(r"Usage in [A-Z]\w+ 20\d\d", page.locator("#usage-title").text_content())


def test_the_key_is_asked_for_and_forgotten(serve: Any, tab: Any, tiny_chat: Any, keys_file: Any) -> None:
    path, keys = keys_file(alice={"requests_per_minute": 1, "monthly_budget": 5})
    live = serve(tiny_chat(), keys=path, price_per_hour=1.0)
    page = tab(live.url).open()
    for wrong in ("sk-kiban-wrong", "キー"):
        page.get_by_label("Key", exact=True).fill(wrong)
        page.get_by_role("button", name="Enter").click()
        page.get_by_text("This key is not known here").wait_for()
    page.get_by_label("Key", exact=True).fill(keys["alice"])
    page.get_by_role("button", name="Enter").click()
    page.get_by_role("tab", name="Chat").wait_for()
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(sessionStorage)]")
    assert keys["alice"] not in kept[0] + kept[1] and keys["alice"] in kept[2]
    assert page.get_by_role("tab").all_text_contents() == ["Chat", "Usage"]
    page.reload()
    page.get_by_role("tab", name="Chat").wait_for()
    page.evaluate("document.querySelector('#chat-max').value = 3")
    assert answers(page, "hi")
    problem = say(page, "again").locator(".problem").text_content()
    assert re.search(r"busy. Try again in about \d\d s", problem) and "may ask 1 times a minute" in problem
    page.get_by_role("tab", name="Usage").click()
    page.get_by_text("Budget of alice: 5 JPY").wait_for()
    page.get_by_role("button", name="Forget key").click()
    page.get_by_label("Key", exact=True).wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_words_are_japanese_by_the_browser_and_change_by_hand(site: Any, tab: Any) -> None:
    page = tab(site.url, locale="ja-JP").open("chat")
    assert page.get_by_role("tab").all_text_contents() == ["チャット", "分類", "類似検索", "レポート", "使用量"]
    page.evaluate("document.querySelector('#chat-max').value = 3")
    assert "トークン" in say(page, "猫").locator(".foot").text_content()
    page.get_by_role("button", name="English").click()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert "3 out" in page.locator(".foot").text_content()  # what was said before is said again
    assert page.locator("#chat-text").get_attribute("placeholder") == "Type a message"
    page.reload()
    page.get_by_role("tab", name="Classify").wait_for()
    assert page.get_by_role("button", name="日本語").is_visible()


def test_what_is_too_long_is_told_with_the_counts(site: Any, tab: Any) -> None:
    page = tab(site.url).open("chat")
    answer = say(page, "x" * 70_000)
    problem = answer.locator(".problem").text_content()
    assert "This is too long" in problem and "takes 65536" in problem
    page.evaluate("document.querySelector('#chat-max').value = 3")
    assert answers(page, "short")  # the message that failed is not sent again


@pytest.mark.parametrize("locale", ["ja-JP", "en-US"])
def test_a_phone_shows_it_without_scrolling_sideways(site: Any, tab: Any, locale: str) -> None:
    page = tab(site.url, locale=locale, viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True).open()
    page.evaluate("document.querySelector('#chat-max').value = 40")
    answers(page, "とても" * 60 + "x" * 200)
    for panel in page.get_by_role("tab").all():
        panel.click()
        if panel.get_attribute("id") == "tab-classify":
            page.locator("#classify-text").fill("猫が好き" * 40)
            page.locator("#classify-run").click()
            page.locator("#classify-rows td.label").first.wait_for()
        if panel.get_attribute("id") == "tab-usage":
            page.locator("#usage-rows td").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, panel.text_content()
        box = panel.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(site: Any, tab: Any, scheme: str) -> None:
    """WCAG AA: 4.5 to 1."""
    page = tab(site.url, color_scheme=scheme).open("chat")
    page.evaluate("document.querySelector('#chat-max').value = 3")
    say(page, "x" * 70_000)
    say(page, "short")
    page.locator("summary").click()
    seen = 0
    for panel in page.get_by_role("tab").all():
        panel.click()
        if panel.get_attribute("id") == "tab-classify":
            page.locator("#classify-text").fill("猫が好き")
            page.locator("#classify-run").click()
            page.locator("#classify-rows td.label").first.wait_for()
        page.locator("body").hover(position={"x": 5, "y": 300})
        found = page.evaluate(CONTRASTS)
        seen += len(found)
        assert [one for one in found if one[0] < 4.5] == []
    assert seen > 60


def test_all_of_it_works_by_keyboard(site: Any, tab: Any) -> None:
    page = tab(site.url).open("chat")
    focused = "document.activeElement.id"
    page.locator("#chat-text:focus").wait_for()
    for expected in ("", "chat-model", "language", "tab-chat"):  # the settings' summary has no id
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(focused) == expected
        style = page.evaluate("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))")
        assert style[0] == "solid" and float(style[1].removesuffix("px")) >= 2, expected
    page.keyboard.press("End")
    assert page.evaluate(focused) == "tab-usage" and page.locator("#usage").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "tab-classify" and page.locator("#classify-text").is_visible()
    for expected in ("language", "classify-model", "classify-text"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == expected
    page.keyboard.type("猫が好き")
    for expected in ("classify-input", "classify-run"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == expected
    page.keyboard.press("Enter")
    page.get_by_text("1 classified").wait_for()
    page.locator("#tab-classify").focus()
    page.keyboard.press("ArrowLeft")
    page.evaluate(LONG)
    page.locator("#chat-text").focus()
    page.keyboard.type("go on")
    page.keyboard.press("Enter")
    grown(page.locator(".answer .text"), 5)
    page.keyboard.press("Escape")
    page.get_by_text("Stopped").wait_for()
    unnamed = "[...document.querySelectorAll('input,select,textarea')].filter(e => !e.labels.length).map(e => e.id)"
    assert page.evaluate(unnamed) == []


def test_a_page_from_elsewhere_cannot_use_a_server_without_keys(site: Any, browser: Any) -> None:
    """It cannot ask, whatever it calls its body, nor read, nor put the page into a frame."""
    elsewhere = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{elsewhere.server_port}/", wait_until="commit")
        before = site.get("/v1/usage").json()["data"]
        tried = page.evaluate(
            """async (url) => {
              const body = JSON.stringify({model: "marked", input: ["tag"]}), told = {};
              const ask = async (name, options) => {
                try { told[name] = (await fetch(url + "/v1/classify", {method: "POST", body, ...options})).type }
                catch (error) { told[name] = error.name }
              };
              const json = {"content-type": "application/json"};
              await ask("json", {headers: json});
              await ask("text", {});
              await ask("blind text", {mode: "no-cors"});
              await ask("blind json", {mode: "no-cors", headers: json});
              await ask("blob", {mode: "no-cors", body: new Blob([body], {type: "application/json"})});
              navigator.sendBeacon(url + "/v1/classify", body);
              try { navigator.sendBeacon(url + "/v1/classify", new Blob([body], {type: "application/json"})) } catch {}
              try { told.read = (await fetch(url + "/v1/models")).type } catch (error) { told.read = error.name }
              const frame = document.createElement("iframe");
              frame.src = url;
              document.body.append(frame);
              await new Promise((resolve) => { frame.onload = resolve });
              return told;
            }""",
            site.url,
        )
        assert tried["json"] == tried["text"] == tried["read"] == "TypeError" and tried["blind text"] == "opaque"
        assert page.frames[1].locator("[role=tab]").count() == 0
        assert site.get("/v1/usage").json()["data"] == before
    finally:
        context.close()
        elsewhere.shutdown()
        elsewhere.server_close()
