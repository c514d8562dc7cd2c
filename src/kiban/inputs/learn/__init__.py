"""Train tokenizers on corpora of any size, Japanese ones included."""

from kiban.inputs.learn.bpe import train_bpe

__all__ = ["train_bpe"]
