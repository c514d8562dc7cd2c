"""Zero-shot classification and retrieval: formulas, and a CLIP that has learned three colours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kiban import zoo
from kiban.errors import ConfigError, DatasetError
from kiban.evaluate.pictures import embed_images
from kiban.evaluate.zero_shot import (
    TEMPLATES,
    class_weights,
    embed_texts,
    predict,
    retrieval,
    search,
    templates,
)
from kiban.families.clip import CLIP, CLIPConfig, TextConfig, VisionConfig, text_batch
from kiban.inputs.image import clip_batch
from kiban.inputs.tokenizer import Tokenizer
from kiban.objectives.contrastive import Contrastive

COLOURS = {"red": (210, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 220)}
JAPANESE = {"赤": "red", "緑": "green", "青": "blue"}


def config(tokenizer: Tokenizer) -> CLIPConfig:
    shape = {"num_layers": 2, "dim": 32, "num_heads": 2, "ffn_dim": 64, "embed_dim": 24}
    text = TextConfig(vocab_size=tokenizer.vocab_size, max_seq_len=24, eos_id=tokenizer.eos_id, **shape)
    return CLIPConfig(text=text, vision=VisionConfig(image_size=16, patch_size=8, **shape))


def picture(name: str, seed: int) -> Image.Image:
    """An even colour with noise, in an odd size."""
    noise = torch.randint(-25, 26, (20, 26, 3), generator=torch.Generator().manual_seed(seed))
    values = (noise + torch.tensor(COLOURS[name])).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.fixture(scope="module")
def learned(byte_tokenizer: Tokenizer) -> CLIP:
    """Trained on pictures of three colours with captions in two languages; the first prompts alone."""
    c = config(byte_tokenizer)
    model = zoo.initialise(CLIP(c), torch.Generator().manual_seed(0))
    assert isinstance(model, CLIP)
    objective, optimizer = Contrastive(model), torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(40):
        pixels = clip_batch([picture(name, 100 * step + i) for i, name in enumerate(COLOURS)], size=16)
        for names in (list(COLOURS), list(JAPANESE)):
            prompt = "{}" if step % 2 else ("a photo of a {}." if names[0] == "red" else "{}の写真")
            tokens = text_batch(byte_tokenizer, [prompt.format(name) for name in names], c.text)
            optimizer.zero_grad()
            objective({"images": pixels, "tokens": tokens}).total.backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("names", "lang"), [(list(COLOURS), "en"), (list(JAPANESE), "ja")])
def test_new_pictures_are_told_by_the_names_of_their_colours(
    learned: CLIP, byte_tokenizer: Tokenizer, names: list[str], lang: str
) -> None:
    truth = [i for i in range(3) for _ in range(8)]
    images = embed_images(learned, [picture(list(COLOURS)[i], 9000 + n) for n, i in enumerate(truth)], batch_size=7)
    weights = class_weights(learned, byte_tokenizer, names, templates(lang)[:2])
    probabilities = predict(learned, images, weights)
    assert probabilities.argmax(-1).tolist() == truth
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(truth)))
    expected = (learned.logit_scale.exp() * images @ weights.mT).softmax(-1)
    torch.testing.assert_close(probabilities, expected.detach())
    assert not images.is_inference()  # a probe can learn from them
    # The same by search: the nearest pictures of a name are those of its colour.
    cosines, places = search(embed_texts(learned, byte_tokenizer, names), images, most=8)
    assert [{truth[place] for place in row} for row in places.tolist()] == [{0}, {1}, {2}]
    assert (cosines.diff(dim=-1) <= 0).all()


def test_a_class_is_the_mean_of_its_prompts(byte_tokenizer: Tokenizer) -> None:
    c = config(byte_tokenizer)
    model = zoo.initialise(CLIP(c), torch.Generator().manual_seed(1)).eval()
    assert isinstance(model, CLIP)
    prompts = ("{}", "two {} and a {}")
    found = class_weights(model, byte_tokenizer, ["cat", "{dog"], prompts)
    for row, name in zip(found, ["cat", "{dog"], strict=True):
        texts = [name, f"two {name} and a {name}"]
        tokens = [text_batch(byte_tokenizer, [text], c.text) for text in texts]
        mean = torch.cat([model.encode_text(row) for row in tokens]).mean(0)
        torch.testing.assert_close(row, F.normalize(mean, dim=0).detach())


def test_texts_end_and_are_cut_and_padded_as_clip_wants_them(byte_tokenizer: Tokenizer) -> None:
    c = config(byte_tokenizer).text
    end = byte_tokenizer.eos_id
    tokens = text_batch(byte_tokenizer, ["ab", "", "x" * 100], c)
    assert tokens.shape == (3, 24)
    ab = byte_tokenizer.encode("ab", add_special=False)
    assert tokens[0].tolist() == [*ab, *[end] * 22]
    assert tokens[1].tolist() == [end] * 24
    assert tokens[2].tolist() == [*byte_tokenizer.encode("x" * 23, add_special=False), end]
    model = zoo.initialise(CLIP(config(byte_tokenizer)), torch.Generator().manual_seed(1)).eval()
    assert isinstance(model, CLIP)
    alone = embed_texts(model, byte_tokenizer, ["ab"])
    torch.testing.assert_close(embed_texts(model, byte_tokenizer, ["ab", "x" * 100], batch_size=2)[:1], alone)


@pytest.mark.parametrize("lang", TEMPLATES)
def test_templates_have_one_place_for_a_name_and_differ(lang: str) -> None:
    found = templates(lang)
    assert all(prompt.count("{}") == 1 for prompt in found) and len({*found}) == len(found)


def test_what_cannot_be_asked_is_told(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = CLIP(config(byte_tokenizer)).eval()
    with pytest.raises(ConfigError, match=r"fr.*templates"):
        templates("fr")
    for names in ([], ["cat", "cat"]):
        with pytest.raises(ConfigError, match="names"):
            class_weights(model, byte_tokenizer, names)
    for prompts in ((), ("a photo",)):
        with pytest.raises(ConfigError, match=r"\{\}"):
            class_weights(model, byte_tokenizer, ["cat"], prompts)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        embed_images(model, [picture("red", 0), tmp_path / "broken.png"])
    assert embed_images(model, []).shape == (0, 24) and embed_texts(model, byte_tokenizer, []).shape == (0, 24)


def test_recall_counts_the_own_partner_among_the_nearest() -> None:
    images = torch.eye(4)
    texts = torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0.8, 0], [0, 0.8, 0.6, 0], [0, 0, 0, 1.0]])
    found = retrieval(images, texts, ks=(1, 2, 9))
    assert found == {
        "image_to_text@1": 0.5, "image_to_text@2": 1.0, "image_to_text@9": 1.0,
        "text_to_image@1": 0.5, "text_to_image@2": 1.0, "text_to_image@9": 1.0,
        "chance@1": 0.25, "chance@2": 0.5, "chance@9": 1.0,
    }  # fmt: skip
    shifted = retrieval(images, torch.cat((texts[:1], torch.eye(4)[[1, 1, 1]])), ks=(1,))
    assert shifted["image_to_text@1"] == 0.25  # equal texts: ties count against the model
    assert shifted["text_to_image@1"] == 0.5


def test_search_gives_no_more_than_there_is() -> None:
    cosines, places = search(torch.eye(3)[:2], torch.eye(3), most=10)
    assert cosines.shape == places.shape == (2, 3)
    assert places[:, 0].tolist() == [0, 1]
