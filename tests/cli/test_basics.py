"""Help, errors in one line, sizes, languages, and a start that loads nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kiban.cli.console import current
from kiban.cli.sizes import as_bytes, as_seconds, shown
from kiban.errors import ConfigError

HEAVY = ("torch", "numpy", "transformers", "sklearn", "tokenizers", "polars", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["adopt", "--help"], ["models", "--help"], ["run", "--help"], ["--version"]]
)
def test_help_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from kiban.cli.main import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    if "help" in arguments[-1]:
        assert "kiban adopt" in done.stdout or "kiban models" in done.stdout or "kiban run" in done.stdout


def test_importing_kiban_loads_nothing_heavy() -> None:
    code = f"import kiban, sys; print([n for n in {HEAVY!r} if n in sys.modules], kiban.__version__, callable(kiban.adopt))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("[] 0."), done.stdout + done.stderr
    assert done.stdout.strip().endswith("True")


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "kiban", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("kiban 0.")


def test_an_error_is_one_line_and_debug_shows_where(kiban: Callable, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    said = kiban("models", "show", "minilm-16")
    assert said.code == 1 and said.err.count("\n") == 1
    assert said.err.startswith("error: minilm-16") and "minilm-l6" in said.err
    from kiban.cli.main import main
    from kiban.errors import KibanError

    with pytest.raises(KibanError):
        main(["--debug", "models", "show", "minilm-16"])
    monkeypatch.setenv("KIBAN_DEBUG", "")


def test_starting_takes_little(capsys: pytest.CaptureFixture[str]) -> None:
    """Only imports are held to (above); the time depends on the machine and is printed."""
    code = "import time; from kiban.cli.main import app; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    print(f"CPU seconds of a start: {float(done.stdout):.2f}")


@pytest.mark.parametrize("verb", ["adopt", "run", "models"])
def test_the_help_of_a_verb_shows_examples(kiban: Callable, verb: str) -> None:  # type: ignore[type-arg]
    said = kiban(verb, "--help")
    assert said.code == 0 and "Examples:" in said.out and f"kiban {verb} " in said.out.split("Examples:")[1]


def test_what_is_piped_is_utf8_whatever_the_console_speaks() -> None:
    command = [sys.executable, "-m", "kiban", "models", "--lang", "ja"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "系列" in done.stdout.decode("utf-8") and "→" in done.stdout.decode("utf-8")


@pytest.mark.weights
def test_a_model_that_is_there_is_pulled_at_once(kiban: Callable, minilm_folder: Path) -> None:  # type: ignore[type-arg]
    said = kiban("models", "pull", "minilm-l6")
    assert said.code == 0 and Path(said.out.strip()) == minilm_folder
    assert "minilm-l6" in kiban("models", "pull", "minilm-16").err


def test_wrong_usage_ends_with_2(kiban: Callable) -> None:  # type: ignore[type-arg]
    assert kiban("adopt", "x.csv", "--no-such-option").code == 2
    assert kiban("frobnicate").code == 2


def test_the_catalogue_is_listed_filtered_and_given_as_json(kiban: Callable) -> None:  # type: ignore[type-arg]
    assert "reads→writes" in kiban("models").out and "系列" in kiban("models", "--lang", "ja").out
    names = [entry["name"] for entry in json.loads(kiban("models", "--json").out)]
    encoders = {"minilm-l6", "kiban-encoder-ja-en"}
    llamas = {"kiban-lm-ja-en", "smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"}
    eyes, drawing = {"resnet-50-imagenet", "kiban-clip-emoji"}, {"kiban-sd-emoji"}
    ours = {"kiban-encoder-ja-en", "kiban-lm-ja-en", "kiban-clip-emoji", "kiban-sd-emoji"}
    assert encoders | llamas | eyes | drawing == set(names)
    for filters, left in (
        (["--writes", "embedding"], encoders | eyes),
        (["--language", "ja"], {*ours, "qwen2.5-coder-1.5b-instruct"}),
        (["--max-memory", "1GB"], {*encoders, *eyes, *ours, "smollm2-135m-instruct"}),
        (["--family", "bert"], encoders),
        (["--reads", "image"], eyes | drawing),
        (["--commercial", "--family", "llama"], llamas),
    ):
        assert {entry["name"] for entry in json.loads(kiban("models", "--json", *filters).out)} == left, filters


def test_everything_known_of_a_model_is_shown(kiban: Callable) -> None:  # type: ignore[type-arg]
    facts = json.loads(kiban("models", "show", "smollm2-135m-instruct", "--json").out)
    assert facts["parameters"] == 134_515_008 and facts["licence"] == "Apache-2.0" and facts["checked"]
    assert "134515008" in kiban("models", "show", "smollm2-135m-instruct").out


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("500MB", 500_000_000), ("2GiB", 2**31), ("10", 10), ("1.5 kB", 1500), ("1tib", 2**40)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert as_bytes(text, "--max-memory") == size


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert as_seconds(text, "--time") == seconds


def test_what_is_no_size_or_time_names_the_option() -> None:
    for text in ("", "four", "4XB", "-1GB"):
        with pytest.raises(ConfigError, match="--max-memory"):
            as_bytes(text, "--max-memory")
    for text in ("", "0", "soon", "-5m"):
        with pytest.raises(ConfigError, match="--time"):
            as_seconds(text, "--time")
    assert (shown(None), shown(5e8), shown(2.34e9)) == ("unknown", "500 MB", "2.3 GB")


@pytest.mark.parametrize(
    ("variables", "asked", "lang"),
    [
        ({"LANG": "ja_JP.UTF-8"}, None, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C"}, None, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "en", "en"),
        ({}, None, "en"),
    ],
)
def test_the_language_is_the_users(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: str | None, lang: str
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert current(asked).lang == lang


def test_an_unknown_language_is_told(kiban: Callable) -> None:  # type: ignore[type-arg]
    assert "ja or en" in kiban("models", "--lang", "fr").err


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m kiban models show smollm2-135m-instruct --json | head -c 5"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent)
    assert done.returncode == 0 and not done.stderr
