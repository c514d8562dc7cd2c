"""Nearest examples and prompts for choosing a label."""

from __future__ import annotations

import pytest

from kiban.generate.few_shot import ChoicePrompt, NearestExamples
from kiban.inputs.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML


def test_the_most_similar_comes_first_and_ties_go_to_the_earlier() -> None:
    texts = ["商品が届きません", "返品したい", "商品が届きません", "hello world"]
    finder = NearestExamples(texts)
    assert finder.nearest("商品がまだ届きません", 2) == [0, 2]
    assert finder.nearest("hello, world!", 1) == [3]
    assert finder.nearest("zzz", 3) == [0, 1, 2]  # nothing in common: the order of the texts
    assert len(finder.nearest("返品", 10)) == 4


@pytest.mark.parametrize("text", ["", "a", "字"])
def test_short_texts_are_found(text: str) -> None:
    assert NearestExamples(["字", "a", "b"]).nearest(text, 1) in ([0], [1])


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    return Tokenizer(tokenizer.backend, special=tokenizer.special, chat_template=template)


def test_plain_prompt(byte_tokenizer: Tokenizer) -> None:
    prompt = ChoicePrompt(byte_tokenizer, ("good", "bad"), "en")
    text = byte_tokenizer.decode(prompt.build("I like\nit", [("awful", "bad")]))
    assert text == "Classify the text. Choose one of: good, bad\n\nText: awful\nLabel: bad\n\nText: I like it\nLabel:"
    assert [byte_tokenizer.decode(ids) for ids in prompt.choices()] == [" good", " bad"]


def test_japanese_plain_prompt(byte_tokenizer: Tokenizer) -> None:
    prompt = ChoicePrompt(byte_tokenizer, ("良い", "悪い"), "ja")
    text = byte_tokenizer.decode(prompt.build("好き"))
    assert text.endswith("文章: 好き\n分類:") and "良い、悪い" in text
    assert [byte_tokenizer.decode(ids) for ids in prompt.choices()] == ["良い", "悪い"]


def test_chat_prompt_shows_examples_as_turns(byte_tokenizer: Tokenizer) -> None:
    prompt = ChoicePrompt(with_template(byte_tokenizer, CHATML), ("x", "y"), "en")
    text = byte_tokenizer.decode(prompt.build("q", [("shown", "y")]))
    assert text.endswith("</system><user>shown</user><assistant>y</assistant><user>q</user><assistant>")
    assert [byte_tokenizer.decode(ids) for ids in prompt.choices()] == ["x", "y"]


def test_a_template_without_system_turns_gets_the_instruction_in_the_question(byte_tokenizer: Tokenizer) -> None:
    prompt = ChoicePrompt(with_template(byte_tokenizer, NO_SYSTEM), ("x", "y"), "en")
    text = byte_tokenizer.decode(prompt.build("q"))
    assert text == "<user>Classify the text. Choose one of: x, y\n\nq</user><assistant>"


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_prefix_is_what_all_prompts_begin_with(byte_tokenizer: Tokenizer, template: str | None) -> None:
    prompt = ChoicePrompt(with_template(byte_tokenizer, template), ("x", "y"), "en")
    prefix = prompt.prefix()
    assert "Choose one of: x, y" in byte_tokenizer.decode(prefix)
    for text in ("hello", "日本", ""):
        assert prompt.build(text)[: len(prefix)] == prefix


def test_long_texts_keep_their_beginning_within_the_budget(byte_tokenizer: Tokenizer) -> None:
    prompt = ChoicePrompt(byte_tokenizer, ("x", "y"), "ja", max_text_tokens=10)
    text = byte_tokenizer.decode(prompt.build("あいうえおかきくけこ"))
    assert "文章: あいう\n" in text  # three bytes each; the tenth byte is no character
