"""What a strategy on pictures saves predicts the same in a fresh process, in kiban and in transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import kiban
from kiban import zoo
from kiban.adapt.heads import fit_linear_head
from kiban.adopt.sources import open_source
from kiban.adopt.strategies import BY_KIND, image_head, load_predictor, strategy
from kiban.adopt.strategies.base import Candidate, Job, Predictor, Rows, Task
from kiban.adopt.strategies.image_baseline import features
from kiban.adopt.strategies.image_embedding import ImageHeadPredictor
from kiban.adopt.strategies.image_neighbours import votes
from kiban.errors import DatasetError, FormatError, IntegrityError, KibanError
from kiban.inputs.image import clip_pixels
from kiban.weights.folder import write_folder

NAMES = BY_KIND["image"]
ALONE = ("image_baseline", "small_cnn")
ON_CLIP = tuple(name for name in NAMES if name not in ALONE)
LABELS = ("circle", "cross", "square")
CHILD = """
import json, sys
from pathlib import Path
from kiban.adopt.strategies import load_predictor
paths, folders = json.loads(sys.stdin.read())
print(json.dumps({name: load_predictor(Path(folder)).predict(paths).tolist() for name, folder in folders.items()}))
"""
Saved = dict[str, tuple[Predictor, Path]]


@pytest.fixture(scope="module")
def parts(photos: Path) -> tuple[Rows, Rows, list[str]]:
    """60 pictures to train, 15 to validate, and 15 others."""
    looked = open_source(photos).look(0)
    order = np.random.default_rng(0).permutation(len(looked.inputs))

    def rows(chosen: Any) -> Rows:
        return Rows(inputs=[looked.inputs[i] for i in chosen], targets=[looked.targets[i] for i in chosen])

    return rows(order[:60]), rows(order[60:75]), list(rows(order[75:90]).inputs)


def fit(name: str, model: Path | None, parts: Any, work: Path, *, steps: int = 4) -> Predictor:
    job = Job(
        task=Task(kind="image", labels=LABELS, language="en", length_p95=48),
        candidate=Candidate(strategy=name, model=None if model is None else str(model)),
        train=parts[0], validation=parts[1], max_steps=steps, seed=1, work=work,
    )  # fmt: skip
    return strategy(name).fit(job).predictor


@pytest.fixture(scope="module")
def saved(parts: Any, tiny_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Each strategy's predictor in hand, and the folder that it was saved to."""
    root, found = tmp_path_factory.mktemp("image-strategies"), {}
    for name in NAMES:
        predictor = fit(name, None if name in ALONE else tiny_clip_folder, parts, root / "work" / name)
        predictor.save(root / name)
        found[name] = (predictor, root / name)
    return found


@pytest.fixture(scope="module")
def fresh(saved: Saved, parts: Any) -> dict[str, Any]:
    """Probabilities by strategy, as a new process gives them from the files."""
    question = json.dumps((parts[2], {name: str(folder) for name, (_, folder) in saved.items()}))
    command = [sys.executable, "-c", CHILD]
    child = subprocess.run(command, input=question, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(child.stdout))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_predicts_the_same(saved: Saved, fresh: dict[str, Any], parts: Any, name: str) -> None:
    in_hand, loaded = saved[name][0], load_predictor(saved[name][1])
    assert loaded.labels == in_hand.labels == LABELS
    here = loaded.predict(parts[2])
    assert here.shape == (15, 3) and np.allclose(here.sum(-1), 1)
    assert np.array_equal(here, in_hand.predict(parts[2]))
    assert np.abs(here - np.asarray(fresh[name])).max() < 1e-9
    assert len({tuple(row) for row in here.round(6)}) > 2, "the answers hang on the picture"
    assert loaded.predict([]).shape == (0, 3)
    one = loaded.predict(parts[2][:1])
    assert np.abs(one - here[:1]).max() < 1e-5


def softmax(logits: Any) -> NDArray[np.float64]:
    return np.asarray(torch.as_tensor(logits).double().softmax(-1).numpy())


@pytest.mark.parametrize("name", ["image_head", "image_zero_shot", "image_lora"])
def test_a_head_on_clip_opens_in_transformers(saved: Saved, parts: Any, name: str) -> None:
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoModel

    folder = saved[name][1]
    model, told = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    processor, head = AutoImageProcessor.from_pretrained(folder), load_file(folder / "head" / "model.safetensors")
    pixels = processor([Image.open(path).convert("RGB") for path in parts[2]], return_tensors="pt").pixel_values
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels).pooler_output.flatten(1)
        logits = torch.nn.functional.normalize(found, dim=-1) @ head["weight"].T + head["bias"]
    assert np.abs(softmax(logits) - load_predictor(folder).predict(parts[2])).max() < 1e-4


def test_the_vision_tower_of_a_final_folder_opens_alone(saved: Saved, parts: Any) -> None:
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    folder = saved["image_lora"][1]
    tower = CLIPVisionModelWithProjection.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(parts[2][0]), return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(tower(pixels).image_embeds, dim=-1)
    ours = kiban.load(folder).loaded.module.encode_image(pixels)  # type: ignore[union-attr,operator]
    assert (theirs - ours).abs().max() < 1e-5


def test_zero_shot_is_what_clip_says_of_names(tiny_clip_folder: Path, saved: Saved, parts: Any) -> None:
    from transformers import CLIPModel

    from kiban.evaluate.zero_shot import class_weights

    loaded = zoo.load(tiny_clip_folder)
    weights = class_weights(loaded.module, loaded.tokenizer, LABELS)  # type: ignore[arg-type]
    theirs = CLIPModel.from_pretrained(tiny_clip_folder)
    with torch.no_grad():
        images = loaded.module.encode_image(  # type: ignore[operator]
            torch.stack([clip_pixels(path, size=32) for path in parts[2]])
        )
        logits = theirs.logit_scale.exp() * images @ weights.mT
    assert np.abs(softmax(logits) - saved["image_zero_shot"][0].predict(parts[2])).max() < 1e-5


def test_names_of_folders_are_read_as_words_in_their_language(
    tiny_clip_folder: Path, parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    from kiban.evaluate import zero_shot

    real = zero_shot.embed_texts
    monkeypatch.setattr(zero_shot, "embed_texts", lambda m, t, texts: asked.extend(texts) or real(m, t, texts))
    job = Job(
        task=Task(kind="image", labels=("red_circle", "星", "top-left"), language="mixed", length_p95=48),
        candidate=Candidate(strategy="image_zero_shot", model=str(tiny_clip_folder)),
        train=parts[0], validation=parts[1], max_steps=1, seed=1, work=tmp_path,
    )  # fmt: skip
    assert strategy("image_zero_shot").fit(job).predictor.labels == ("red_circle", "星", "top-left")
    assert "a photo of a red circle." in asked and "星の写真" in asked and "a photo of a top left." in asked
    assert "a photo of a 星." not in asked


def test_the_small_network_opens_in_transformers(saved: Saved, parts: Any) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = saved["small_cnn"][1]
    model, told = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(path).convert("RGB") for path in parts[2]], return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model.eval()(pixels).logits
    assert np.abs(softmax(logits) - load_predictor(folder).predict(parts[2])).max() < 1e-4
    assert tuple(model.config.id2label.values()) == LABELS


def test_the_small_network_learns_and_ends_alike_after_a_stop(parts: Any, tmp_path: Path) -> None:
    parts = (parts[0], parts[0], parts[2])
    whole = fit("small_cnn", None, parts, tmp_path / "whole", steps=36)
    right = np.mean(whole.predict(parts[0].inputs).argmax(1) == np.asarray(parts[0].targets))
    assert right > 0.6, "chance is a third"
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole" / "step-20", tmp_path / "again" / "step-20")
    again = fit("small_cnn", None, parts, tmp_path / "again", steps=36)
    assert np.array_equal(again.predict(parts[2]), whole.predict(parts[2]))


def test_lora_changes_the_tower_and_fits_better_than_a_probe(
    tiny_clip_folder: Path, parts: Any, tmp_path: Path
) -> None:
    parts = (parts[0], parts[0], parts[2])
    probe, tuned = (fit(n, tiny_clip_folder, parts, tmp_path / n, steps=200) for n in ("image_head", "image_lora"))
    assert isinstance(probe, ImageHeadPredictor) and isinstance(tuned, ImageHeadPredictor)
    before, after = (p.loaded.module.state_dict() for p in (probe, tuned))
    assert before.keys() == after.keys(), "merged, so that nothing of the adapters is left"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("vision.blocks") and name.endswith("weight") for name in changed)
    truth = np.asarray(parts[0].targets)
    right = [(p.predict(parts[0].inputs).argmax(1) == truth).mean() for p in (probe, tuned)]
    assert right[1] > right[0] > 0.5


def test_a_backbone_that_only_sees_works_too(parts: Any, tmp_path: Path) -> None:
    from transformers import AutoModel

    loaded = zoo.create("resnet-tiny", generator=torch.Generator().manual_seed(0))
    zoo.save(loaded, tmp_path / "resnet")
    for name in ("image_head", "image_neighbours"):
        predictor = fit(name, tmp_path / "resnet", parts, tmp_path / "work")
        predictor.save(tmp_path / name)
        assert np.array_equal(load_predictor(tmp_path / name).predict(parts[2]), predictor.predict(parts[2]))
        AutoModel.from_pretrained(tmp_path / name)


def test_a_head_on_a_wide_embedding_is_the_one_of_all_its_axes(
    parts: Any, tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, targets = np.random.default_rng(0), np.asarray(parts[0].targets)
    rows = rng.normal(size=(60, 200)) + 3 * np.eye(3, 200)[targets]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr(image_head, "embed", lambda *given, **more: rows)
    found = fit("image_head", tiny_clip_folder, parts, tmp_path / "work")
    plain = fit_linear_head(rows, targets, num_labels=3, seed=1)
    assert isinstance(found, ImageHeadPredictor)
    assert np.abs(found.weight - plain.weight).max() < 1e-3 * np.abs(plain.weight).max()


def test_neighbours_vote_by_likeness() -> None:
    likeness = np.asarray([[0.9, 0.8, 0.7, 0.1]])
    targets = np.asarray([0, 1, 1, 2])
    assert votes(likeness, targets, 1, 3).tolist() == [[1.0, 0.0, 0.0]]
    weights = np.exp(np.asarray([0.0, -0.1, -0.2]) / 0.07)
    expected = [weights[0] / weights.sum(), (weights[1] + weights[2]) / weights.sum(), 0.0]
    assert np.allclose(votes(likeness, targets, 3, 3), [expected])
    assert np.allclose(votes(likeness, targets, 99, 3).sum(), 1.0)


def test_edges_know_directions_and_colours_know_shares(tmp_path: Path) -> None:
    stripes = (np.indices((64, 64))[1] // 4 % 2 * 255).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "upright.png")
    Image.fromarray(stripes.T).save(tmp_path / "flat.png")
    upright, flat = features([tmp_path / "upright.png", tmp_path / "flat.png"])
    assert upright.shape == (64 + 7 * 7 * 36,)
    assert np.allclose(upright[[0, 63]], 0.5**0.5, atol=1e-3) and np.allclose(upright[1:63], 0)
    middle = slice(64 + 24 * 36, 64 + 25 * 36)  # a block in the middle: four cells of nine directions
    across, down = (edges[middle].reshape(4, 9).sum(0).argmax() for edges in (upright, flat))
    assert (across, down) == (0, 4), "the direction in which brightness changes: 0 and 90 of 180 degrees"
    assert abs(float(np.linalg.norm(upright[64:])) - 1) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_cannot_be_read_is_named(saved: Saved, tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"broken\.png: is no PNG"):
        saved[name][0].predict([tmp_path / "broken.png"])
    with pytest.raises(DatasetError, match=r"nowhere\.png: no such file"):
        saved[name][0].predict(["nowhere.png"])


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_never_overwritten_and_a_changed_file_is_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    with pytest.raises(KibanError, match="exists already"):
        saved[name][0].save(saved[name][1])
    for file in [path for path in saved[name][1].rglob("model.*") if path.is_file()]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(saved[name][1], folder)
        weights = folder / file.relative_to(saved[name][1])
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        with pytest.raises(IntegrityError, match="has changed since it was written"):
            load_predictor(folder)


def test_a_baseline_with_foreign_types_is_refused(tmp_path: Path) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    evil = skops.io.dumps(FunctionTransformer(subprocess.check_output))
    write_folder(
        tmp_path / "model",
        tensors={},
        config={},
        files={"model.skops": evil},
        manifest={"strategy": "image_baseline", "labels": ["a", "b"]},
    )
    with pytest.raises(FormatError, match=r"does not use: subprocess\.check_output"):
        load_predictor(tmp_path / "model")


def test_kiban_load_gives_labels_of_paths(saved: Saved, parts: Any) -> None:
    for name, (predictor, folder) in saved.items():
        model = kiban.load(folder)
        expected = [LABELS[i] for i in predictor.predict(parts[2]).argmax(-1)]
        assert model.predict(parts[2]) == expected, name
        assert model.predict(Path(parts[2][0])) == expected[0]
        assert set(model.predict_proba(parts[2][0])) == set(LABELS)
