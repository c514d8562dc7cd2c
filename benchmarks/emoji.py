"""What kiban-clip-emoji and kiban-sd-emoji, trained on emoji from scratch, can do with concepts they were not shown.

    python examples/get_images.py emoji && python benchmarks/emoji.py clip --save
    python benchmarks/emoji.py draw --save --grid docs/emoji-drawn.png

clip: how often a picture's own name is the nearest, or among the nearest five, of all names of that part; and a name's
picture of all pictures. draw: pictures drawn from the names of held-out concepts, as two judges see them: CLIP-score, the
cosine of picture and name in kiban-clip-emoji, beside that of real pictures and that of drawn ones with another concept's
name (it flatters: the U-Net is told by that CLIP's text tower, so that drawn pictures score more than real ones); and a
small network that learned Unicode's nine groups from the pictures of training and had no part in the drawing. Intervals
are 95%, over concepts drawn whole.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import kiban
from common import RESULTS, finish, table
from kiban import zoo
from kiban.adopt.strategies import strategy
from kiban.adopt.strategies.base import Candidate, Job, Predictor, Rows, Task
from kiban.data.pairs import Pair, read_pairs
from kiban.evaluate.pictures import embed_images
from kiban.evaluate.statistics import mean_interval
from kiban.evaluate.zero_shot import embed_texts
from kiban.generate.draw import Drawing
from kiban.generate.images import ImageSampling
from kiban.inputs.image import read_image
from kiban.recipes.image_text import name_ranks
from kiban.tour.page import JAPANESE_FONTS

EMOJI = Path(__file__).parent.parent / "examples" / "cache" / "emoji"
PARTS = ("new-concepts", "new-style", "new-both")
LANGUAGES = ("ja", "en")
SEEDS = (0, 1)
SHOWN = 12  # concepts of the grid, and as many columns as fit


def main() -> None:
    """Measure, print and, with --save, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clip", "draw"])
    parser.add_argument("--clip", default="kiban-clip-emoji", help="catalogue name or folder")
    parser.add_argument("--model", default="kiban-sd-emoji", help="what draws: catalogue name or folder")
    parser.add_argument("--guidance", nargs="*", type=float, default=[1.0, 4.0], help="scales to draw with")
    parser.add_argument("--judge-steps", type=int, default=600, help="of the network that tells groups")
    parser.add_argument("--grid", type=Path, help="PNG of drawn pictures beside real ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/emoji-clip.json or emoji-draw.json")
    options = parser.parse_args()
    options.repeats = 1
    torch.set_num_threads(options.threads)
    clip = zoo.load(options.clip)
    found = retrieval(clip) if options.what == "clip" else drawing(clip, options)
    finish(f"emoji-{options.what}", found, options, ("numpy",))


def retrieval(clip: zoo.Loaded) -> dict[str, Any]:
    """recall@1 and @5 of each part and language, both ways."""
    rows = []
    for part in PARTS:
        pairs = list(read_pairs(EMOJI / part))
        for lang in LANGUAGES:
            ranks = name_ranks(clip, pairs, lang)
            ways = (("picture to name", ranks.names, ranks.own), ("name to picture", ranks.pictures, None))
            for way, rank, groups in ways:
                for k in (1, 5):
                    value, low, high = mean_interval((rank < k).astype(float), groups)
                    of = len(ranks.known) if groups is not None else len(pairs)
                    rows.append({"part": part, "language": lang, "way": way, "k": k, "recall": value, "low": low,
                                 "high": high, "chance": chance(ranks.own, k, of, way), "rows": len(rank)})  # fmt: skip
    print(table(rows))
    return {"retrieval": rows}


def chance(own: Any, k: int, of: int, way: str) -> float:
    """What guessing finds: a name has one place among the names, its pictures several among the pictures."""
    if way == "picture to name":
        return min(1.0, k / of)
    counts = np.bincount(own)
    missed = np.ones(len(counts))
    for drawn in range(k):
        missed *= (of - counts - drawn) / (of - drawn)
    return float(1 - missed.mean())


def drawing(clip: zoo.Loaded, options: argparse.Namespace) -> dict[str, Any]:
    """CLIP-score and judged groups of pictures of held-out and of trained concepts, over guidance scales."""
    model = kiban.load(options.model)
    real = list(read_pairs(EMOJI / "new-concepts"))
    asked = one_each(real)
    trained = one_each(list(read_pairs(EMOJI / "train")))
    trained = [trained[i] for i in np.random.default_rng(0).permutation(len(trained))[: len(asked)]]
    with tempfile.TemporaryDirectory() as scratch:
        judge, labels = judge_of(list(read_pairs(EMOJI / "train")), options.judge_steps, Path(scratch))
        rows = [row("real", "", None, clip, judge, labels, [p.image for p in real], real, lang) for lang in LANGUAGES]
        for scale in options.guidance:
            for kind, pairs in (("held out", asked), ("trained", trained)):
                for lang in LANGUAGES:
                    drawn = [pair for pair in pairs for _ in SEEDS]
                    paths = drawn_from(model, pairs, lang, scale, Path(scratch) / f"{scale}-{kind}-{lang}")
                    rows.append(row("drawn", kind, scale, clip, judge, labels, paths, drawn, lang))
                    print(table(rows[-1:]), flush=True)
    groups = np.bincount([labels.index(pair.row["group_en"]) for pair in asked], minlength=len(labels))
    if options.grid:
        grid(model, asked, options.guidance[-1], options.grid)
    facts = {"concepts": len(asked), "seeds": len(SEEDS), "largest_group": float(groups.max() / groups.sum())}
    return {**facts, "drawing": rows}


def one_each(pairs: Sequence[Pair]) -> list[Pair]:
    """A picture of each emoji."""
    return list({pair.row["id"]: pair for pair in pairs}.values())


def judge_of(pairs: Sequence[Pair], steps: int, scratch: Path) -> tuple[Predictor, list[str]]:
    """A small network that tells the group of a picture, from scratch; adopt's own."""
    labels = sorted({pair.row["group_en"] for pair in pairs})
    rows = Rows(inputs=[pair.image for pair in pairs], targets=[labels.index(pair.row["group_en"]) for pair in pairs])
    order = np.random.default_rng(0).permutation(len(rows))
    train, validation = (
        Rows(inputs=[rows.inputs[i] for i in part], targets=[rows.targets[i] for i in part])
        for part in (order[400:], order[:400])
    )
    task = Task(kind="image", labels=tuple(labels), language="other", length_p95=0)
    candidate = Candidate(strategy="small_cnn", model=None)
    job = Job(task=task, candidate=candidate, train=train, validation=validation, max_steps=steps, seed=0,
              work=scratch / "judge")  # fmt: skip
    return strategy("small_cnn").fit(job).predictor, labels


def drawn_from(model: kiban.Model, pairs: Sequence[Pair], lang: str, scale: float, folder: Path) -> list[Path]:
    """A PNG for each pair and seed, drawn from its name."""
    folder.mkdir(parents=True)
    names = [pair.captions[lang][0] for pair in pairs for _ in SEEDS]
    seeds = [1_000 * number + seed for number in range(len(pairs)) for seed in SEEDS]
    paths = [folder / f"{i}.png" for i in range(len(names))]
    for path, image in zip(paths, pictures(model, names, scale, seeds), strict=True):
        image.save(path)
    return paths


def pictures(model: kiban.Model, names: Sequence[str], scale: float, seeds: Sequence[int]) -> list[Image.Image]:
    """A picture of each name."""
    how = Drawing(guidance_scale=scale, sampling=ImageSampling(num_steps=20))
    return [drawn.image for drawn in model.draw(names, how, seeds=seeds, batch_size=32)]


def row(
    kind: str,
    concepts: str,
    scale: float | None,
    clip: zoo.Loaded,
    judge: Predictor,
    labels: Sequence[str],
    paths: Sequence[Any],
    pairs: Sequence[Pair],
    lang: str,
) -> dict[str, Any]:
    """What both judges say of pictures, with intervals over concepts."""
    module: Any = clip.module
    assert clip.tokenizer is not None
    with torch.no_grad():
        images = embed_images(module, list(paths))
        texts = embed_texts(module, clip.tokenizer, [pair.captions[lang][0] for pair in pairs])
    order = np.random.default_rng(0).permutation(len(pairs))
    own, other = (images * texts).sum(-1).numpy(), (images * texts[order]).sum(-1).numpy()
    told = judge.predict(list(paths)).argmax(1)
    right = [labels[i] == pair.row["group_en"] for i, pair in zip(told, pairs, strict=True)]
    ids = [pair.row["concept"] for pair in pairs]
    measures = {"clip_score": own, "with another name": other, "group": np.array(right, float)}
    found: dict[str, Any] = {"pictures": kind, "concepts": concepts, "guidance": scale, "language": lang}
    for name, values in measures.items():
        found[name], found[f"{name} low"], found[f"{name} high"] = mean_interval(values, ids)
    return found


def grid(model: kiban.Model, asked: Sequence[Pair], scale: float, path: Path) -> None:
    """Rows of held-out names in both languages: a real picture, three drawn from the Japanese, three from the English."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    chosen = [asked[i] for i in np.linspace(0, len(asked) - 1, SHOWN).round().astype(int)]
    names = [pair.captions[lang][0] for pair in chosen for lang in LANGUAGES for _ in range(3)]
    drawn = iter(pictures(model, names, scale, list(range(len(names)))))
    known = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in JAPANESE_FONTS if name in known][:1]
    with matplotlib.rc_context({"font.family": [*fonts, "DejaVu Sans"], "font.size": 8}):
        figure = Figure(figsize=(9, SHOWN * 1.05), layout="constrained")
        for line, pair in zip(figure.subplots(SHOWN, 7), chosen, strict=True):
            shown = [read_image(pair.content(), name=pair.name), *(next(drawn) for _ in range(6))]
            heads = ["", pair.captions["ja"][0] if fonts else "ja", "", "", pair.captions["en"][0], "", ""]
            for axes, image, head in zip(line, shown, heads, strict=True):
                axes.imshow(image)
                axes.set_axis_off()
                axes.set_title(head, loc="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
