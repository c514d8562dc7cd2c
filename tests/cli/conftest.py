"""The command as a function: what it prints, and how it ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    out: str
    err: str
    code: int


@pytest.fixture(scope="session")
def tiny_llama_folder(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a chat template and the tokenizer of the tiny BERT."""
    from kiban import zoo
    from kiban.families.llama import Llama, LlamaConfig

    tokenizer = zoo.load(tiny_bert_folder).tokenizer
    assert tokenizer is not None
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64, max_seq_len=96
    )
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("tiny-llama") / "model"
    zoo.save(zoo.Loaded(zoo.families()["llama"], config, module, tokenizer, None, (), "x", None), folder)
    return folder


@pytest.fixture
def kiban(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    from kiban.cli.main import main

    monkeypatch.setenv("KIBAN_DEBUG", "")  # and whatever --debug sets is gone afterwards
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "en_US.UTF-8")

    def run(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        said = capsys.readouterr()
        code = caught.value.code
        return Said(said.out, said.err, code if isinstance(code, int) else 0 if code is None else 1)

    return run


@pytest.fixture
def small_table(tmp_path: Path) -> Path:
    """120 short rows of three classes, in Japanese."""
    with (EXAMPLES / "debian-ja.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for label in ("ゲーム", "画像", "ライブラリ") for row in [r for r in rows if r["区分"] == label][:40]]
    path = tmp_path / "問い合わせ.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["本文", "区分"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "本文": row["本文"][:24]} for row in kept)
    return path
