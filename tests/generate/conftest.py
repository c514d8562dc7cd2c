"""A tokenizer whose tokens are bytes (so a Japanese character takes three), and a small random Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.families.llama import Llama, LlamaConfig
from kiban.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    folder: Path = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<end>", "<pad>"])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>", "pad_token": "<pad>"}', "utf-8")
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session")
def tiny_llama() -> Llama:
    """Random, with grouped heads; the weights are large enough that answers vary with the prompt."""
    config = LlamaConfig(
        vocab_size=258, num_layers=3, dim=48, num_heads=6, num_kv_heads=2, ffn_dim=96, max_seq_len=192, norm_eps=1e-5
    )
    model = zoo.initialise(Llama(config), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model.eval()  # type: ignore[return-value]
