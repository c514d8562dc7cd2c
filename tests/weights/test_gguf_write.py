"""GPT-2 to GGUF and back, and what the library of the format's authors reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.errors import ConfigError, KibanError
from kiban.inputs.learn import train_bpe
from kiban.weights.gguf_write import write_gguf
from word_gpt import word_gpt

TEXT = ["吾輩は猫である。名前はまだ無い。", "I am a cat; as yet I have no name. I'm 12 years old."]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> zoo.Loaded:
    """gpt-tiny with a byte-level BPE of its own that cuts text as GPT-2 does."""
    return word_gpt(TEXT * 50, tmp_path_factory.mktemp("words"))


def test_a_model_comes_back_with_equal_weights_and_ids(loaded: zoo.Loaded, tmp_path: Path) -> None:
    zoo.save_gguf(loaded, tmp_path / "model.gguf")
    again = zoo.load(tmp_path / "model.gguf")
    assert again.config == loaded.config
    ours = dict(loaded.module.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in again.module.named_parameters())
    assert again.tokenizer is not None and loaded.tokenizer is not None
    for text in TEXT:
        assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    assert again.tokenizer.eos_id == loaded.tokenizer.eos_id == 0


def test_the_formats_own_library_reads_the_same(loaded: zoo.Loaded, tmp_path: Path) -> None:
    from gguf import GGUFReader

    zoo.save_gguf(loaded, tmp_path / "model.gguf", dtype=torch.float16)
    reader = GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    q = loaded.module.get_parameter("blocks.0.attn.q.weight").detach().half().numpy()
    assert (found["blk.0.attn_qkv.weight"].data[:64] == q).all()
    assert found["blk.0.attn_norm.bias"].data.dtype.name == "float32"
    assert reader.fields["gpt2.context_length"].contents() == 256


def test_a_tokenizer_that_the_format_cannot_describe_is_refused(loaded: zoo.Loaded, tmp_path: Path) -> None:
    own = zoo.create("gpt-tiny", generator=torch.Generator().manual_seed(0))
    own.tokenizer = train_bpe(TEXT * 50, vocab_size=400)
    with pytest.raises(ConfigError, match="GPT-2"):
        zoo.save_gguf(own, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(KibanError, match="exists"):
        write_gguf(tmp_path / "model.gguf", {"general.architecture": "gpt2"}, {})
    assert (tmp_path / "model.gguf").read_text() == "mine"
