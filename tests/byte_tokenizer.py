"""Tokenizers of single bytes, so a Japanese character takes three tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kiban.inputs.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(folder: Path, control: Sequence[str], **settings: str) -> Tokenizer:
    """With these control tokens and settings. Its files are written to a folder."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(control))
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return Tokenizer.from_folder(folder)


def chat_tokenizer(folder: Path) -> Tokenizer:
    """The same with the control tokens of a chat and its template."""
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return byte_tokenizer(folder, ("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
