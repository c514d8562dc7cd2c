"""Prompts that ask for one of several labels, and the examples that help most: those that resemble the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kiban.errors import FormatError
from kiban.generate.score import common_prefix
from kiban.inputs.tokenizer import Tokenizer

# Texts that say nothing: what a model answers to them is its bias (see score.calibrate).
CONTENT_FREE = ("", "…", "N/A")
ASK = {
    "ja": ("次の文章を分類してください。選択肢: {labels}", "文章: ", "分類: "),
    "en": ("Classify the text. Choose one of: {labels}", "Text: ", "Label: "),
}


class NearestExamples:
    """Finds the labelled texts that share most character n-grams with a question (TF-IDF, cosine)."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(2, 4), sublinear_tf=True)
        self.matrix = self.vectorizer.fit_transform([_framed(text) for text in texts])

    def nearest(self, text: str, k: int) -> list[int]:
        """Places of the k nearest texts, nearest first; ties go to the earlier text."""
        similarity = (self.matrix @ self.vectorizer.transform([_framed(text)]).T).toarray().ravel()
        return [int(i) for i in sorted(range(len(similarity)), key=lambda i: (-similarity[i], i))[:k]]


def _framed(text: str) -> str:
    """A text with marked ends, so that even an empty one has an n-gram."""
    return f"^{text}$"


@dataclass(frozen=True)
class ChoicePrompt:
    """Builds prompts for one task. Long texts are cut to max_text_tokens; the beginning is kept.

    An instruction-tuned model gets its chat template, with the examples as turns; any other a plain text.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    language: str
    max_text_tokens: int = 96

    def choices(self) -> list[list[int]]:
        """Token ids of each label, as they follow the prompt."""
        space = "" if self.tokenizer.chat_template or self.language == "ja" else " "
        return [self.tokenizer.encode(space + label, add_special=False) for label in self.labels]

    def build(self, text: str, examples: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of the question about text, after examples of (text, label), the last one nearest to it."""
        ask, before, after = ASK["ja" if self.language == "ja" else "en"]
        joined = ("、" if self.language == "ja" else ", ").join(self.labels)
        instruction = ask.format(labels=joined)
        if self.tokenizer.chat_template is None:
            parts = [instruction]
            parts += [f"{before}{self._cut(shown)}\n{after}{label}" for shown, label in examples]
            parts.append(f"{before}{self._cut(text)}\n{after.rstrip()}")
            return self.tokenizer.encode("\n\n".join(parts))
        turns: list[dict[str, str]] = []
        for shown, label in examples:
            turns += [{"role": "user", "content": self._cut(shown)}, {"role": "assistant", "content": label}]
        turns.append({"role": "user", "content": self._cut(text)})
        try:
            return self.tokenizer.chat([{"role": "system", "content": instruction}, *turns])
        except FormatError:  # some templates refuse a system turn; then the first question begins with the instruction
            turns[0] = {"role": "user", "content": f"{instruction}\n\n{turns[0]['content']}"}
            return self.tokenizer.chat(turns)

    def prefix(self) -> list[int]:
        """What the prompts of all texts without examples begin with, for a ChoiceScorer that reads it once."""
        return common_prefix([self.build(text) for text in ("", "a", "1", "あ", '"')])

    def _cut(self, text: str) -> str:
        """The beginning of text, within the limit. Classification may cut: what a text is about stands first."""
        text = " ".join(text.split())
        ids = self.tokenizer.encode(text, add_special=False)
        if len(ids) <= self.max_text_tokens:
            return text
        return self.tokenizer.decode(ids[: self.max_text_tokens]).rstrip("\ufffd")
