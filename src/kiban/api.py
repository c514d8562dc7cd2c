"""`kiban.load(x)`: one object that does what the model can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban import zoo
from kiban.adopt.model import AdoptedModel, several
from kiban.adopt.strategies import load_predictor
from kiban.adopt.strategies.base import Predictor
from kiban.config import Progress, home, silent
from kiban.engine.drawing import DrawingPlan
from kiban.engine.encoder import EncoderPlan
from kiban.errors import ConfigError, LimitError, ModelNotFoundError
from kiban.evaluate.album import Album, open_album
from kiban.evaluate.pictures import Broken, Seeing, embed_images, embed_pixels, own_classes, read_batches, seeing
from kiban.evaluate.zero_shot import embed_texts, predict, weights_of_names
from kiban.families.clip import CLIP
from kiban.families.resnet import ResNetClassifier
from kiban.files import read_json
from kiban.generate.draw import Drawing, Drawn, draw
from kiban.generate.sampling import Sampling
from kiban.generate.text import generate, stream
from kiban.inputs.image import Picture

Message = Mapping[str, str]
SENTENCE_SETTINGS = "sentence_bert_config.json"  # where sentence-transformers keeps the length it was trained for
POOLING = Path("1_Pooling", "config.json")  # and how it makes one vector of many


def load(source: str | Path, *, preset: str | None = None, progress: Progress = silent) -> Model:
    """Open a catalogue name, a Hugging Face folder or id, a GGUF file, a run folder or its `final/`.

    preset: as in `zoo.load`, for latent diffusion's one file.
    Raises ModelNotFoundError, FormatError, UnsafeFormatError or IntegrityError.
    """
    path = Path(source)
    if (path / "final" / "kiban.json").is_file():
        source = path = path / "final"
    elif (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        hint = f"`kiban adopt --resume {path}` ends it; its report tells if no candidate met the requirements"
        raise ModelNotFoundError(path, why="is a run that has left no model", hint=hint)
    manifest = read_json(path / "kiban.json") if (path / "kiban.json").is_file() else {}
    if manifest.get("strategy"):
        predictor = load_predictor(path)
        return Model(getattr(predictor, "loaded", None), predictor=predictor, labels=predictor.labels)
    loaded = zoo.load(source, preset=preset, progress=progress)
    if loaded.head == "sequence_classification":
        from kiban.adopt.strategies.classifier import ClassifierPredictor

        return Model(loaded, predictor=ClassifierPredictor(loaded, loaded.config.max_seq_len, ""), labels=loaded.labels)
    return Model(loaded)


class Model:
    """A model with the abilities of its family and head: generate, chat, embed, fill, classify, search, draw."""

    def __init__(
        self, loaded: zoo.Loaded | None, *, predictor: Predictor | None = None, labels: Sequence[str] = ()
    ) -> None:
        self.loaded, self.predictor, self.labels = loaded, predictor, tuple(labels)
        self._plan: EncoderPlan | None = None
        self._drawing: DrawingPlan | None = None

    @property
    def abilities(self) -> list[str]:
        """What can be asked of it, the natural thing first."""
        if self.predictor is not None:
            return ["classify"]
        assert self.loaded is not None
        traits, found = self.loaded.family.traits, []
        if self.loaded.head == "masked_lm":
            found.append("fill")
        if self.loaded.head is None and traits.causal:
            has_template = self.loaded.tokenizer is not None and self.loaded.tokenizer.chat_template
            found += ["chat", "generate"] if has_template else ["generate"]
        if "embedding" in traits.writes:
            found.append("embed")
            if self.sees:
                names = "text" in traits.reads or self.loaded.head == "image_classification"
                found += ["classify", "search"] if names else ["search"]
        if "image" in traits.writes:
            found.append("draw")
        return found

    @property
    def ability(self) -> str:
        """The first of abilities. Raises ConfigError if there is none."""
        if not self.abilities:
            raise ConfigError("model", why="has a head that `kiban run` does not serve")
        return self.abilities[0]

    @property
    def sees(self) -> bool:
        """Whether it makes embeddings of pictures, which it then embeds, classifies and searches."""
        traits = self.loaded.family.traits if self.loaded is not None and self.predictor is None else None
        return traits is not None and "image" in traits.reads and "embedding" in traits.writes

    def _need(self, ability: str, *, texts: bool = True) -> zoo.Loaded:
        """texts: whether a tokenizer is needed too."""
        if ability not in self.abilities:
            raise ConfigError("model", why=f"cannot {ability}", hint=f"it can: {', '.join(self.abilities)}")
        assert self.loaded is not None
        if texts and "text" not in self.loaded.family.traits.reads:
            raise ConfigError(self.loaded.source, why="reads no text", hint="give it a picture")
        if texts and self.loaded.tokenizer is None:
            raise ConfigError(self.loaded.source, why="has no tokenizer", hint="add its tokenizer.json to the folder")
        return self.loaded

    def generate(self, prompt: str | Sequence[str], **sampling: Any) -> Any:
        """Continue a text, or several; sampling as in `Sampling`. A list gives a list."""
        loaded = self._need("generate")
        assert loaded.tokenizer is not None
        ids = [loaded.tokenizer.encode(text) for text in several(prompt)]
        answers = generate(loaded.module, loaded.tokenizer, ids, Sampling(**sampling))  # type: ignore[arg-type]
        texts = [answer.text for answer in answers]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """The continuation, piece by piece, whole characters only."""
        loaded = self._need("generate")
        assert loaded.tokenizer is not None
        ids = loaded.tokenizer.encode(prompt)
        return stream(loaded.module, loaded.tokenizer, ids, Sampling(**sampling))  # type: ignore[arg-type]

    def chat(self, messages: str | Sequence[Message], **sampling: Any) -> str:
        """The answer to a conversation, or to one message."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return "".join(self.stream_chat(messages, **sampling))

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[str]:
        """The answer, piece by piece."""
        loaded = self._need("chat")
        assert loaded.tokenizer is not None
        ids = loaded.tokenizer.chat(messages)
        return stream(loaded.module, loaded.tokenizer, ids, Sampling(**sampling))  # type: ignore[arg-type]

    def embed(
        self, texts: str | Sequence[str] | None = None, *, images: Picture | Sequence[Picture] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings of length 1 of sentences or of pictures, (N, D); of one (D,).

        Raises ConfigError unless one of both is given, or for a folder of sentence-transformers that does not take the
        mean of the states; DatasetError that names the picture that cannot be read.
        """
        if (texts is None) == (images is None):
            raise ConfigError(
                "embed", why="takes texts or images", hint='for example embed("text") or embed(images=[...])'
            )
        if images is not None:
            pictures, many = _pictures(images)
            vectors = np.asarray(embed_images(self._eyes("embed"), pictures), dtype=np.float32)
            return vectors if many else vectors[0]
        assert texts is not None
        vectors = np.asarray(self._embed_texts(several(texts)), dtype=np.float32)
        return vectors[0] if isinstance(texts, str) else vectors

    def _embed_texts(self, texts: Sequence[str]) -> Any:
        loaded = self._need("embed")
        if isinstance(loaded.module, CLIP):
            assert loaded.tokenizer is not None
            return embed_texts(loaded.module, loaded.tokenizer, texts)
        if self._plan is None:
            self._plan = EncoderPlan(loaded, max_len=sentence_length(loaded))
        return self._plan.embed(texts)

    def classify_images(
        self,
        images: Picture | Sequence[Picture],
        labels: Sequence[str] = (),
        *,
        on_broken: Broken | None = None,
        progress: Progress = silent,
    ) -> Any:
        """The probability of every label for a picture, as a dict, or for several, as a list of dicts.

        labels: names of the classes; each is put into the prompts of its language. A model with classes of its own takes
        none. on_broken: called for a picture that cannot be read, whose place in the list holds None; without it, the
        first raises DatasetError. Raises ConfigError for labels that are missing, doubled, or not the model's.
        """
        names, scores = self._classes(labels)
        pictures, many = _pictures(images)
        found: list[dict[str, float] | None] = [None] * len(pictures)
        batches = read_batches(self._eyes("classify"), pictures, on_broken=on_broken, progress=progress)
        for places, pixels in batches:
            for place, row in zip(places, scores(pixels).tolist(), strict=True):
                found[place] = dict(zip(names, row, strict=True))
        return found if many else found[0]

    def _classes(self, labels: Sequence[str]) -> tuple[Sequence[str], Callable[[Tensor], Tensor]]:
        """The names of the classes, and what gives the probabilities (B, C) for pixels."""
        loaded = self._need("classify", texts=False)
        module = loaded.module
        if isinstance(module, ResNetClassifier):
            if labels:
                why = f"knows {len(loaded.labels):,} classes of its own and no others"
                raise ConfigError("labels", why=f"{loaded.source} {why}", hint="leave them out, or use a CLIP model")
            return loaded.labels, partial(own_classes, module)
        if not labels:
            raise ConfigError("labels", why="are missing", hint="name the classes, for example cat and dog")
        assert isinstance(module, CLIP)
        tokenizer = self._need("classify").tokenizer
        assert tokenizer is not None
        weights = weights_of_names(module, tokenizer, labels)
        return labels, lambda pixels: predict(module, embed_pixels(module, pixels), weights)

    def album(self, folder: str | Path, *, progress: Progress = silent) -> Album:
        """All pictures of a folder, to be searched; kept in kiban's folder, so that the next time is quick.

        Those that cannot be read are in `left_out`. Raises DatasetError if no picture is left.
        """
        return open_album(self._eyes("search"), Path(folder), store=home() / "albums", progress=progress)

    def search_images(
        self, where: str | Path | Album, query: str | Picture, *, top: int = 5, progress: Progress = silent
    ) -> list[tuple[Path, float]]:
        """The pictures of a folder most like a text (str) or a picture (anything else), best first, with cosines."""
        # The query first: it is checked in a moment, and the folder may take minutes.
        vector = self.embed(query) if isinstance(query, str) else self.embed(images=query)
        album = where if isinstance(where, Album) else self.album(where, progress=progress)
        return album.nearest(vector, most=top)

    def _eyes(self, ability: str) -> Seeing:
        if not self.sees:
            hint = f"it can: {', '.join(self.abilities)}; `kiban models --reads image` lists models that see"
            raise ConfigError("model", why="sees no pictures", hint=hint)
        loaded = self._need(ability, texts=False)
        return seeing(loaded.module, name=loaded.source)

    @torch.inference_mode()
    def fill(self, text: str, *, top: int = 5) -> list[tuple[str, float]]:
        """The likeliest words for the first [MASK] in text, with probabilities. Raises ConfigError without one."""
        loaded = self._need("fill")
        tokenizer = loaded.tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode(text, parse_special=True)
        if tokenizer.mask_id not in ids:
            mask = tokenizer.special.get("mask", "[MASK]")
            raise ConfigError("fill", why="the text holds no mask", hint=f"write {mask} where a word is wanted")
        if len(ids) > loaded.config.max_seq_len:
            why = f"has {len(ids)} tokens, the model takes {loaded.config.max_seq_len}"
            raise LimitError("text", why=why, hint="shorten it")
        place = ids.index(tokenizer.mask_id)
        scores = loaded.module(torch.tensor([ids]))[0, place].softmax(-1)
        best = scores.topk(min(top, len(scores)))
        return [(tokenizer.decode([int(i)]), float(p)) for p, i in zip(best.values, best.indices, strict=True)]

    def draw(
        self, prompt: str | Sequence[str], how: Drawing | None = None, *, seeds: Sequence[int] = (0,), **more: Any
    ) -> list[Drawn]:
        """A picture for each seed, of the one prompt or of one each; more as in `kiban.generate.draw.draw`."""
        loaded = self._need("draw")
        if self._drawing is None or not self._drawing.is_of(loaded):
            self._drawing = None  # its memory is needed for the next
            self._drawing = DrawingPlan(loaded) if DrawingPlan.fits(loaded) else None
        return draw(loaded, prompt, how, seeds=seeds, plan=self._drawing, **more)

    def predict(self, texts: str | Sequence[str]) -> Any:
        """The label of a text, or of several. A list gives a list."""
        return self._classifier().predict(texts)

    def predict_proba(self, texts: str | Sequence[str]) -> Any:
        """The probability of every label, as a dict for a text, as a list of dicts for several."""
        return self._classifier().predict_proba(texts)

    def _classifier(self) -> AdoptedModel:
        if self.predictor is None:
            raise ConfigError("model", why="is no classifier", hint=f"it can: {', '.join(self.abilities)}")
        return AdoptedModel(self.predictor, self.labels)

    def save(self, folder: str | Path) -> None:
        """Write a folder that opens in Hugging Face tools; it must be new."""
        if self.predictor is not None:
            self.predictor.save(Path(folder))
        else:
            assert self.loaded is not None
            zoo.save(self.loaded, Path(folder))


def _pictures(images: Picture | Sequence[Picture]) -> tuple[list[Picture], bool]:
    """All pictures, and whether they are a sequence; the name of one and its bytes are sequences too."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images), True
    return [images], False


def sentence_length(loaded: zoo.Loaded) -> int | None:
    """The tokens after which an encoder of sentences cuts a text; None for all that the model takes.

    Raises ConfigError if it pools otherwise than we do.
    """
    if loaded.path is None:
        return None
    ways = read_json(loaded.path / POOLING) if (loaded.path / POOLING).is_file() else {}
    chosen = sorted(name for name, used in ways.items() if name.startswith("pooling_mode_") and used is True)
    if chosen not in ([], ["pooling_mode_mean_tokens"]):
        why = f"makes sentence embeddings by {' and '.join(chosen)}, kiban by the mean alone"
        raise ConfigError(loaded.path / POOLING, why=why)
    if not (loaded.path / SENTENCE_SETTINGS).is_file():
        return None
    longest = read_json(loaded.path / SENTENCE_SETTINGS).get("max_seq_length")
    return longest if isinstance(longest, int) and longest > 0 else None
