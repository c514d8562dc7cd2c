"""Train tokenizers on corpora of any size, Japanese ones included."""

from kiban.inputs.learn.bpe import train_bpe
from kiban.inputs.learn.unigram import train_unigram
from kiban.inputs.learn.wordpiece import train_wordpiece

__all__ = ["train_bpe", "train_unigram", "train_wordpiece"]
