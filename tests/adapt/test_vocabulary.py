"""Japanese for models that were made without it: longer tokens, ids of all else as they were, rows that begin well."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban import zoo
from kiban.adapt.vocabulary import expand, grow
from kiban.errors import ConfigError, DatasetError
from kiban.inputs.learn import train_bpe, train_unigram
from kiban.inputs.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
NEW = 3000
MODELS = ("minilm-l6", "smollm2-135m-instruct")


def column(name: str, column: str) -> list[str]:
    with (EXAMPLES / name).open(encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def japanese() -> list[str]:
    return column("debian-ja.csv", "本文")


@pytest.fixture(scope="module")
def english() -> list[str]:
    return column("debian-en.csv", "text")


@pytest.fixture(scope="module")
def models(minilm_folder: Path, smollm2_gguf: Path) -> dict[str, zoo.Loaded]:
    return dict(zip(MODELS, (zoo.load(minilm_folder), zoo.load(smollm2_gguf)), strict=True))


def tokenizer_of(loaded: zoo.Loaded) -> Tokenizer:
    assert loaded.tokenizer is not None
    return loaded.tokenizer


@pytest.fixture(scope="module")
def expanded(models: dict[str, zoo.Loaded], japanese: list[str]) -> dict[str, Tokenizer]:
    return {name: expand(tokenizer_of(m), japanese[:1500], num_new=NEW) for name, m in models.items()}


def per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Characters a token."""
    return sum(map(len, texts)) / sum(map(len, tokenizer.encode_batch(texts, add_special=False)))


def other_scripts() -> list[str]:
    """Random texts of every script but Japanese, accents and marks among them."""
    generator = random.Random(0)
    ranges = [(0x20, 0x7F), (0x20, 0x250), (0x300, 0x370), (0x370, 0x3000), (0xA000, 0xD7A4), (0x1F300, 0x1F700)]
    return [
        "".join(chr(generator.randrange(*generator.choice(ranges))) for _ in range(generator.randrange(1, 12)))
        for _ in range(3000)
    ]


@pytest.mark.weights
@pytest.mark.parametrize("name", MODELS)
def test_japanese_gets_shorter_and_all_else_stays(
    name: str, models: dict[str, zoo.Loaded], expanded: dict[str, Tokenizer], japanese: list[str], english: list[str]
) -> None:
    old, new = tokenizer_of(models[name]), expanded[name]
    assert new.vocab_size == old.vocab_size + NEW
    assert per_token(new, japanese[1500:]) > {"minilm-l6": 1.5, "smollm2-135m-instruct": 2.4}[name] * per_token(
        old, japanese[1500:]
    )
    texts = [*english, *other_scripts(), "“Don’t” — naïve café… 5°C ½ €10 😀", "各 안녕하세요 Привет สวัสดี"]
    assert new.encode_batch(texts[:-1]) == old.encode_batch(texts[:-1])
    places = [new.encode_with_offsets(text) for text in english[:50]]
    assert places == [old.encode_with_offsets(text) for text in english[:50]]


@pytest.mark.weights
@pytest.mark.parametrize("name", MODELS)
def test_old_tokens_keep_their_ids(name: str, models: dict[str, zoo.Loaded], expanded: dict[str, Tokenizer]) -> None:
    old, new = tokenizer_of(models[name]), expanded[name]
    before, after = (t.backend.open.get_vocab(with_added_tokens=True) for t in (old, new))  # type: ignore[attr-defined]
    assert before.items() <= after.items()
    assert sorted(after.values()) == list(range(new.vocab_size))
    assert (new.special, new.chat_template, new.max_len) == (old.special, old.chat_template, old.max_len)
    assert new.backend.control_tokens() == old.backend.control_tokens()


@pytest.mark.weights
def test_voicing_marks_stay(models: dict[str, zoo.Loaded], expanded: dict[str, Tokenizer]) -> None:
    old, new = tokenizer_of(models["minilm-l6"]), expanded["minilm-l6"]
    pairs = [("かき", "がき"), ("はは", "ぱぱ"), ("ハス", "バス"), ("クルーフ", "グループ")]
    for plain, voiced in pairs:
        assert old.encode(plain) == old.encode(voiced)
        assert new.encode(plain) != new.encode(voiced)
        assert new.unk_id not in new.encode(voiced)
        assert new.decode(new.encode(voiced)).replace(" ", "") == voiced
    # Half-width and decomposed spellings are the same word; marks go from all other letters, as before.
    assert new.encode("ｸﾞﾙｰﾌﾟ") == new.encode("ク\u3099ルーフ\u309a") == new.encode("グループ")
    assert new.encode("Ｇroup！") == new.encode("group!")
    assert new.encode("café グ") == new.encode("cafe グ")


@pytest.mark.weights
def test_unknown_kanji_stand_alone(expanded: dict[str, Tokenizer]) -> None:
    new = expanded["minilm-l6"]
    tokens = [new.backend.open.id_to_token(i) for i in new.encode("日本𩸽日本", add_special=False)]  # type: ignore[attr-defined]
    assert tokens.count("[UNK]") == 1 and "".join(tokens).replace("##", "") == "日本[UNK]日本"
    assert new.unk_id not in new.encode("ー" * 500 + "あ" * 500), "no word is too long"


@pytest.mark.weights
def test_bytes_still_spell_everything(
    expanded: dict[str, Tokenizer], japanese: list[str], models: dict[str, zoo.Loaded]
) -> None:
    new = expanded["smollm2-135m-instruct"]
    for text in [*japanese[1500:1600], *other_scripts()[:300], "𩸽と㌔ か\u3099 ｶﾞ 〇々", "日本語 の テスト。"]:
        assert new.decode(new.encode(text)) == text
    messages = [{"role": "user", "content": "日本語<|im_end|>"}]
    old = tokenizer_of(models["smollm2-135m-instruct"])
    assert new.chat(messages).count(2) == old.chat(messages).count(2), "nobody forges an end of turn"


@pytest.mark.weights
@pytest.mark.parametrize("name", MODELS)
def test_a_grown_model_answers_as_before_and_opens_in_transformers(
    name: str,
    models: dict[str, zoo.Loaded],
    expanded: dict[str, Tokenizer],
    japanese: list[str],
    english: list[str],
    tmp_path: Path,
) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = models[name], expanded[name]
    grown = grow(model, tokenizer)
    tokens = torch.tensor([tokenizer.encode(english[0])])
    with torch.inference_mode():
        before, after = model.module(tokens), grown.module(tokens)
    assert torch.equal(after[..., : before.shape[-1]], before)
    zoo.save(grown, tmp_path / "model")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [*japanese[1500:1560], *english[:20]]
    assert theirs(texts)["input_ids"] == tokenizer.encode_batch(texts)
    kind = AutoModelForCausalLM if model.family.traits.causal else AutoModel
    peer: Any = kind.from_pretrained(tmp_path / "model").eval()
    ours = torch.tensor([tokenizer.encode(japanese[1500])])
    with torch.inference_mode():
        torch.testing.assert_close(grown.module(ours), peer(ours)[0], atol=1e-4, rtol=1e-4)
    again = zoo.load(tmp_path / "model")
    assert again.tokenizer is not None and again.tokenizer.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert again.config == grown.config and again.num_parameters == grown.num_parameters


@pytest.mark.weights
def test_a_grown_encoder_opens_in_sentence_transformers(
    models: dict[str, zoo.Loaded], expanded: dict[str, Tokenizer], japanese: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    zoo.save(grow(models["minilm-l6"], expanded["minilm-l6"]), tmp_path / "model")
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = japanese[1500:1520]
    assert peer.tokenizer(texts)["input_ids"] == expanded["minilm-l6"].encode_batch(texts)
    assert peer.encode(texts).shape == (20, 384)


@pytest.mark.weights
@pytest.mark.parametrize("name", MODELS)
def test_a_new_row_is_the_mean_of_the_old_pieces(
    name: str, models: dict[str, zoo.Loaded], expanded: dict[str, Tokenizer]
) -> None:
    old, new = tokenizer_of(models[name]), expanded[name]
    grown = grow(models[name], new)
    rows = next(p for p in grown.module.parameters() if p.shape[0] == new.vocab_size)
    vocabulary = new.backend.open.get_vocab()  # type: ignore[attr-defined]
    fresh = [(token, id) for token, id in vocabulary.items() if id >= old.vocab_size]
    texts = {id: new.decode([id]).removeprefix("##") for _, id in fresh}
    begin = {id: texts[id] for token, id in fresh if len(texts[id]) > 1 and not token.startswith("##")}
    assert len(begin) > 500
    for id, text in begin.items():
        pieces = [piece for piece in old.encode(text, add_special=False) if piece != old.unk_id]
        if len(pieces) > 1:
            torch.testing.assert_close(rows[id], rows[pieces].mean(0))
    inside = {id: text for id, text in texts.items() if name == "minilm-l6" and vocabulary.get(f"##{text}") == id}
    for id, text in inside.items():  # takes the rows of pieces inside a word
        first, *rest = old.encode(text, add_special=False)
        first = old.backend.token_to_id("##" + old.backend.open.id_to_token(first)) or first  # type: ignore[attr-defined]
        if old.unk_id not in [first, *rest] and len(text) == 1 + len(rest):
            torch.testing.assert_close(rows[id], rows[[first, *rest]].mean(0))
    assert (len(inside) > 500) == (name == "minilm-l6")


def small(kind: str, texts: list[str], *, tied: bool = False, head: str | None = None) -> zoo.Loaded:
    """A random model with a tokenizer that was trained on English."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers import Tokenizer as Library

    from kiban.families.bert import BertConfig
    from kiban.families.llama import LlamaConfig
    from kiban.inputs.backends import Fast

    if kind == "bert":
        words = BertWordPieceTokenizer(lowercase=True)
        words.train_from_iterator(texts, vocab_size=800, show_progress=False)
        names = {f"{n}": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
        tokenizer = Tokenizer(Fast(Library.from_str(words.to_str())), special=names)
        config: Any = BertConfig(vocab_size=tokenizer.vocab_size, num_layers=1, dim=16, num_heads=2, ffn_dim=32)
    else:
        tokenizer = train_bpe(texts, vocab_size=800)
        config = LlamaConfig(
            vocab_size=832, num_layers=1, dim=16, num_heads=2, num_kv_heads=1, ffn_dim=32, max_seq_len=64, tied=tied
        )
    family = zoo.families()[kind]
    module = family.build(config)
    if head is not None:
        module = family.heads[head].build(module, 3)
    zoo.initialise(module, torch.Generator().manual_seed(0))
    return zoo.Loaded(family, config, module, tokenizer, head, ("a", "b", "c") if head else (), "x", None)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_grow_alike(tied: bool, japanese: list[str], english: list[str]) -> None:
    model = small("llama", english[:200], tied=tied)
    tokenizer = expand(tokenizer_of(model), japanese[:200], num_new=300)
    grown = grow(model, tokenizer)
    module: Any = grown.module
    assert (module.head.weight is module.embed.weight) == tied
    assert module.embed.weight.shape == module.head.weight.shape == (1100, 16) == (tokenizer.vocab_size, 16)
    new = tokenizer.encode("パッケージ")[0]
    pieces = tokenizer_of(model).encode("パッケージ")
    old: Any = model.module
    for before, after in ((old.embed, module.embed), (old.head, module.head)):
        torch.testing.assert_close(after.weight[new], before.weight[pieces].mean(0))
    assert old.embed.weight.shape[0] == 832, "the model that was given stays as it was"
    module(torch.tensor([[new, 1099]]))[..., new].sum().backward()
    assert module.embed.weight.grad[new].abs().sum() > 0, "and it trains"


def test_rows_that_a_model_has_to_spare_are_used_first(japanese: list[str], english: list[str]) -> None:
    model = small("llama", english[:200])
    tokenizer = expand(tokenizer_of(model), japanese[:200], num_new=10)
    grown = grow(model, tokenizer)
    assert 805 < tokenizer.vocab_size <= 810 and grown.config.vocab_size == 832
    rows: Any = grown.module.embed.weight  # type: ignore[union-attr]
    pieces = [p.id for p in tokenizer_of(model).backend.open.model.tokenize(tokenizer.backend.open.id_to_token(805))]  # type: ignore[attr-defined]
    torch.testing.assert_close(rows[805], model.module.embed.weight[pieces].mean(0))  # type: ignore[union-attr,index]


def test_random_rows_are_of_the_size_of_the_old_ones(japanese: list[str], english: list[str]) -> None:
    model = small("bert", english[:200], head="masked_lm")
    tokenizer = expand(tokenizer_of(model), japanese[:500], num_new=2000)
    first, second, other = (
        grow(model, tokenizer, init="random", generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    body: Any = model.module.body
    size = len(body.embed.token.weight)
    rows = [m.module.body.embed.token.weight[size:] for m in (first, second, other)]  # type: ignore[union-attr,index]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert rows[0].std().item() == pytest.approx(body.embed.token.weight.std().item(), rel=0.05)
    bias: Any = first.module.predictor.bias  # type: ignore[union-attr]
    assert bias.shape == (tokenizer.vocab_size,) and torch.all(bias[size:] == bias[:size].mean())
    logits = first.module(torch.tensor([tokenizer.encode(japanese[0])]))
    assert logits.shape[-1] == tokenizer.vocab_size


def test_a_head_without_a_vocabulary_stays(japanese: list[str], english: list[str], tmp_path: Path) -> None:
    model = small("bert", english[:200], head="sequence_classification")
    tokenizer = expand(tokenizer_of(model), japanese[:200], num_new=300)
    grown = grow(model, tokenizer)
    assert grown.labels == ("a", "b", "c") and grown.head == "sequence_classification"
    zoo.save(grown, tmp_path / "model")
    tokens = torch.tensor([tokenizer.encode(japanese[0])[:100]])
    again = zoo.load(tmp_path / "model")
    with torch.inference_mode():
        torch.testing.assert_close(again.module(tokens), grown.module.eval()(tokens))


def test_fewer_texts_give_fewer_tokens(english: list[str]) -> None:
    tokenizer = tokenizer_of(small("bert", english[:200]))

    def fresh(num_new: int) -> list[str]:
        new = expand(tokenizer, ["猫と猫"], num_new=num_new)
        return [new.backend.open.id_to_token(i) for i in range(tokenizer.vocab_size, new.vocab_size)]  # type: ignore[attr-defined]

    assert fresh(50) == ["猫", "##猫", "と", "##と"]
    assert fresh(5) == ["猫", "##猫"], "half are characters"
    many = fresh(2000)
    assert len(many) == len({*many}) < 400 and {"猫", "ぱ", "##ヴ"} <= {*many}, "where there is room, every kana"


def test_what_strips_no_accents_keeps_every_spelling(japanese: list[str], english: list[str]) -> None:
    from tokenizers import BertWordPieceTokenizer
    from tokenizers import Tokenizer as Library

    from kiban.inputs.backends import Fast

    words = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    texts = [*english[:200], "Café cafe\u0301 Ａ naïve"]
    words.train_from_iterator(texts, vocab_size=800, min_frequency=1, show_progress=False)
    old = Tokenizer(Fast(Library.from_str(words.to_str())), special={"unk": "[UNK]"})
    new = expand(old, japanese[:200], num_new=1000)
    assert new.encode_batch([*texts[:-1], "Café", "cafe\u0301"]) == old.encode_batch(
        [*texts[:-1], "Café", "cafe\u0301"]
    )
    assert new.encode("Café") != new.encode("Cafe\u0301")
    assert new.encode("がプ") != new.encode("かフ") and new.unk_id not in new.encode("がプ")


def test_added_tokens_of_a_bpe_keep_their_ids(japanese: list[str], english: list[str]) -> None:
    """Where they stand behind the vocabulary, as in Qwen, and not in it."""
    from tokenizers import AddedToken

    from kiban.inputs.backends import Fast

    library = tokenizer_of(small("llama", english[:200])).backend.open  # type: ignore[attr-defined]
    library.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    old = Tokenizer(Fast(library), special={"eos": "<|im_end|>"})
    new = expand(old, japanese[:100], num_new=100)
    assert (old.eos_id, new.eos_id) == (801, 801)
    assert new.encode("<|im_start|>", parse_special=True) == [800]
    assert max(new.encode("パッケージ")) >= 802


def test_what_cannot_be_expanded_is_told(japanese: list[str], english: list[str]) -> None:
    bert, llama = small("bert", english[:200]), small("llama", english[:200])
    with pytest.raises(ConfigError, match="Unigram"):
        expand(train_unigram(japanese[:100], vocab_size=2000), japanese, num_new=10)
    with pytest.raises(ConfigError, match="less than 1"):
        expand(tokenizer_of(bert), japanese, num_new=0)
    for model in (bert, llama):
        with pytest.raises(DatasetError, match="no word"):
            expand(tokenizer_of(model), english[:5], num_new=10)
    once = expand(tokenizer_of(bert), japanese[:100], num_new=100)
    with pytest.raises(ConfigError, match="begin with"):
        expand(once, japanese, num_new=10)
    with pytest.raises(ConfigError, match="use expand"):
        grow(bert, expand(tokenizer_of(llama), japanese[:100], num_new=10))
    with pytest.raises(ConfigError, match="no tokenizer"):
        grow(zoo.create("bert-tiny", device="meta"), once)
