"""`kiban serve` as it is typed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiban.serve.auth import read_keys
from kiban.serve.served import name_of


@pytest.fixture
def kiban(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """kiban(*arguments): exit code, stdout, stderr."""
    from kiban.cli.main import main

    monkeypatch.setenv("KIBAN_DEBUG", "")  # and whatever --debug sets is gone afterwards

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


def test_help_shows_examples(kiban: Any) -> None:
    code, out, _ = kiban("serve", "--help")
    assert code == 0 and "kiban serve smollm2-135m-instruct" in out and "--new-key" in out
    assert "serve" in kiban("--help")[1]


def test_a_new_key_is_printed_once_and_works(kiban: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    code, out, err = kiban("serve", "--new-key", "経理", "--keys", str(path))
    token = out.strip()
    assert code == 0 and token.startswith("sk-kiban-") and token not in err
    assert read_keys(path).client([f"Bearer {token}".encode()]).name == "経理"
    assert token not in path.read_text("utf-8") and json.loads(path.read_text("utf-8"))["keys"][0]["name"] == "経理"
    code, _, err = kiban("serve", "--new-key", "経理", "--keys", str(path))
    assert code == 1 and "there is a key of this name" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--new-key", "a"], "--keys keys.json"),
        (["--port", "0"], "no model given"),
        (["x", "--host", "0.0.0.0"], "without a key"),
        (["no-such-model", "--port", "0"], "no-such-model"),
        (["x", "--keys", "missing.json"], "is missing"),
        (["a=kiban-lm-ja-en", "a=minilm-l6", "--port", "0"], "two models have this name"),
        (["x", "--price-per-hour", "inf"], "out of range"),
    ],
)
def test_what_is_wrong_is_one_line(kiban: Any, arguments: list[str], why: str) -> None:
    code, out, err = kiban("serve", *arguments)
    assert code == 1 and out == "" and why in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_port_that_is_taken_is_told_before_models_are_loaded(kiban: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = kiban("serve", "no-such-model", "--port", str(taken.getsockname()[1]))
    assert code == 1 and "in use" in err and "--port" in err


def test_names_are_those_of_runs_and_files(baseline_folder: Path, tmp_path: Path) -> None:
    assert name_of(str(baseline_folder)) == "adopt-words"
    (tmp_path / "tiny.Q4_1.gguf").write_bytes(b"x")
    assert name_of(str(tmp_path / "tiny.Q4_1.gguf")) == "tiny.Q4_1"
    assert name_of("owner/model") == "owner/model" and name_of("minilm-l6") == "minilm-l6"
