"""A small GPT with a byte-level BPE of its own that cuts text as GPT-2 does, so that GGUF can hold both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from kiban import zoo
from kiban.inputs.tokenizer import Tokenizer

VOCAB_SIZE = 512  # of gpt-tiny


def word_gpt(texts: Iterable[str], folder: Path) -> zoo.Loaded:
    """gpt-tiny with words learned from texts. The tokenizer's files are written to a folder."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens([f"<|{i}|>" for i in range(VOCAB_SIZE - library.get_vocab_size())])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}')
    model = zoo.create("gpt-tiny", generator=torch.Generator().manual_seed(0))
    model.tokenizer = Tokenizer.from_folder(folder)
    return model
