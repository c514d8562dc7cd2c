"""Fixtures shared by all tests: real weights, pulled once and then offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from kiban.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """For this process and those it starts: more threads only wait for each other on models this small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """MiniLM-L6, a Hugging Face folder."""
    from kiban.catalogue.pull import pull

    return pull("minilm-l6")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file in Q4_1."""
    from kiban.catalogue.pull import pull

    return pull("smollm2-135m-instruct")


def _texts() -> list[str]:
    root = Path(__file__).parent.parent / "examples" / "data"
    return [
        line for name in ("debian-ja.csv", "debian-en.csv") for line in (root / name).read_text("utf-8").splitlines()
    ]


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two narrow layers, as a Hugging Face folder, with a tokenizer that knows the example data."""
    from tokenizers import BertWordPieceTokenizer

    from kiban import zoo
    from kiban.families.bert import Bert, BertConfig
    from kiban.inputs.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(_texts(), vocab_size=2000, min_frequency=2, show_progress=False)
    words.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}', "utf-8"
    )
    size = len(words.get_vocab())
    config = BertConfig(vocab_size=size, num_layers=2, dim=32, num_heads=2, ffn_dim=64, max_seq_len=128)
    generator = torch.Generator().manual_seed(0)
    loaded = zoo.Loaded(
        family=zoo.families()["bert"],
        config=config,
        module=zoo.initialise(Bert(config), generator),
        tokenizer=Tokenizer.from_folder(folder),
        head=None,
        labels=(),
        source="tiny-bert",
        path=None,
    )
    zoo.save(loaded, folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Its tokens are bytes, so a Japanese character takes three."""
    from byte_tokenizer import byte_tokenizer as made

    folder = tmp_path_factory.mktemp("bytes")
    return made(folder, ("<end>", "<pad>"), eos_token="<end>", pad_token="<pad>")
