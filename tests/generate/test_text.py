"""Generation: equal to transformers, indifferent to batch and padding, whole characters, stop texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kiban.errors import ConfigError, LimitError
from kiban.families.llama import Llama, hf_names, to_hf
from kiban.generate.sampling import Sampling
from kiban.generate.text import generate, stream
from kiban.inputs.tokenizer import Tokenizer
from kiban.nn.cache import KVCache
from kiban.weights.names import to_published

PROMPTS = ["The capital of Japan is", "東京", "a", "To be or not to be, that is the question"]


class Script:
    """A model that says one text whatever it is asked; byte tokens."""

    class config:  # noqa: N801
        max_seq_len = 1000

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(
        self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, last_only: bool = False
    ) -> Tensor:
        assert cache is not None
        logits = torch.zeros(tokens.shape[0], 1, 258)
        logits[:, :, self.ids[cache.length]] = 1.0
        cache.advance(1)
        return logits

    def make_cache(self, batch: int, max_len: int) -> KVCache:
        return KVCache(1, batch, 1, 1, max_len)


def ids_of(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text) for text in PROMPTS]


def test_greedy_equals_transformers(tiny_llama: Llama, byte_tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**to_hf(tiny_llama.config)))
    parameters = dict(tiny_llama.named_parameters())
    theirs.load_state_dict(to_published(hf_names(tiny_llama.config), parameters))
    theirs.eval()
    prompts = ids_of(byte_tokenizer)
    ours = generate(tiny_llama, byte_tokenizer, prompts, Sampling(max_new_tokens=40))
    assert len({tuple(answer.ids) for answer in ours}) > 1  # the prompts matter
    for prompt, answer in zip(prompts, ours, strict=True):
        wanted = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=byte_tokenizer.eos_id,
            pad_token_id=byte_tokenizer.pad_id,
        )
        assert answer.ids == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_equals_single(tiny_llama: Llama, byte_tokenizer: Tokenizer, temperature: float) -> None:
    """Rows are padded on the left to the longest; neither that nor the neighbours may change an answer."""
    sampling = Sampling(max_new_tokens=24, temperature=temperature, top_p=0.9, repetition_penalty=1.1, seed=5)
    prompts = ids_of(byte_tokenizer)
    together = generate(tiny_llama, byte_tokenizer, prompts, sampling)
    for prompt, answer in zip(prompts, together, strict=True):
        assert generate(tiny_llama, byte_tokenizer, [prompt], sampling)[0] == answer


def test_cache_equals_no_cache(tiny_llama: Llama, byte_tokenizer: Tokenizer) -> None:
    prompt = byte_tokenizer.encode(PROMPTS[0])
    answer = generate(tiny_llama, byte_tokenizer, [prompt], Sampling(max_new_tokens=30))[0]
    ids = list(prompt)
    with torch.inference_mode():
        for id in answer.ids:
            assert int(tiny_llama(torch.tensor([ids]))[0, -1].argmax()) == id
            ids.append(id)


def test_a_seed_repeats_and_seeds_differ(tiny_llama: Llama, byte_tokenizer: Tokenizer) -> None:
    prompt, sampling = byte_tokenizer.encode("abc"), Sampling(max_new_tokens=20, temperature=1.5, seed=1)
    first, again, other = generate(tiny_llama, byte_tokenizer, [prompt] * 3, sampling, seeds=[1, 1, 2])
    assert first.ids == again.ids != other.ids
    assert generate(tiny_llama, byte_tokenizer, [prompt], sampling)[0].ids == first.ids


def say(text: str, tokenizer: Tokenizer, sampling: Sampling, *, end: bool = True) -> tuple[list[str], str, str]:
    """Let a model say text: the streamed pieces, and the whole answer with its reason."""
    ids = tokenizer.encode(text) + ([tokenizer.eos_id] if end and tokenizer.eos_id is not None else [])
    pieces: list[str] = []
    answer = generate(Script(ids), tokenizer, [[0]], sampling, on_text=lambda row, piece: pieces.append(piece))[0]
    assert list(stream(Script(ids), tokenizer, [0], sampling)) == pieces
    assert "".join(pieces) == answer.text
    return pieces, answer.text, answer.finish_reason


def test_streaming_yields_whole_characters(byte_tokenizer: Tokenizer) -> None:
    text = "日本の首都は東京です。🎉 yes"
    pieces, whole, reason = say(text, byte_tokenizer, Sampling(max_new_tokens=200))
    assert pieces == list(text) and whole == text and reason == "stop"


def test_a_stop_text_is_found_across_tokens_and_never_shown(byte_tokenizer: Tokenizer) -> None:
    sampling = Sampling(max_new_tokens=200, stop=("質問:", "\n\n"))
    pieces, whole, reason = say("答えは質素。質問: 次は", byte_tokenizer, sampling)
    assert whole == "答えは質素。" and reason == "stop"
    assert pieces == ["答", "え", "は", "質素", "。"]  # the first 質 might have been the stop text; it is held back
    assert say("one\ntwo\n\nthree", byte_tokenizer, sampling)[1] == "one\ntwo"


def test_what_was_held_back_is_given_at_the_end(byte_tokenizer: Tokenizer) -> None:
    assert say("end?", byte_tokenizer, Sampling(max_new_tokens=200, stop=("?!",)))[1] == "end?"


def test_length_is_a_reason_and_bytes_that_never_became_a_character_are_marked(byte_tokenizer: Tokenizer) -> None:
    _, whole, reason = say("東京", byte_tokenizer, Sampling(max_new_tokens=4), end=False)
    assert reason == "length" and whole == "東\ufffd"


def test_a_prompt_is_never_cut(tiny_llama: Llama, byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(LimitError, match="190 tokens and 3 new ones exceed the model's 192"):
        generate(tiny_llama, byte_tokenizer, [[1] * 190], Sampling(max_new_tokens=3))
    with pytest.raises(ConfigError, match="empty"):
        generate(tiny_llama, byte_tokenizer, [[]], Sampling())
    with pytest.raises(LimitError):
        next(stream(tiny_llama, byte_tokenizer, [1] * 190, Sampling(max_new_tokens=3)))
    assert len(generate(tiny_llama, byte_tokenizer, [[1] * 190], Sampling(max_new_tokens=2))[0].ids) <= 2
    assert generate(tiny_llama, byte_tokenizer, [], Sampling()) == []
