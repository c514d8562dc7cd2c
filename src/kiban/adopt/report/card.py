"""The model card of `final/`: a README.md with the front matter that the hub reads, in Japanese or English."""

from __future__ import annotations

import re
from importlib import resources

from kiban.adopt.report.formats import Formats, Lang
from kiban.adopt.report.names import STRATEGIES, candidate_name
from kiban.adopt.report.words import say
from kiban.adopt.result import CandidateResult, Result

LIBRARIES = {
    **dict.fromkeys(("baseline", "image_baseline"), "skops"),
    **dict.fromkeys(("linear_head", "finetune_encoder"), "sentence-transformers"),
}
NUM_WEAKEST = 3
# The identifiers that the hub knows; anything else is "other" there, and named in the text.
LICENCE_TAGS = {"MIT": "mit", "Apache-2.0": "apache-2.0", "BSD-3-Clause": "bsd-3-clause", "gemma": "gemma"}


def model_card(result: Result, candidate: CandidateResult, *, lang: Lang) -> str:
    """The card of one candidate of a run, in Markdown."""
    from jinja2 import Environment, StrictUndefined

    languages = {"ja": ["ja"], "en": ["en"], "mixed": ["ja", "en"], "other": []}[result.profile.language]
    weakest = [score for score in sorted(candidate.per_class, key=lambda s: s.f1) if score.support][:NUM_WEAKEST]
    known = candidate.licence != "unknown"
    template = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string(
        resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8")
    )
    text = template.render(
        result=result,
        candidate=candidate,
        lang=lang,
        f=Formats(lang, images=result.kind == "image"),
        images=result.kind == "image",
        name=candidate_name(candidate.strategy, candidate.model, lang),
        strategy=candidate.strategy,
        told=STRATEGIES[candidate.strategy][lang][1],
        library=LIBRARIES.get(candidate.strategy, "transformers"),
        language_tags=languages,
        licence_tag=LICENCE_TAGS.get(candidate.licence, "other"),
        licence=candidate.licence if known else say("licence_unknown", lang),
        commercial=say(f"commercial_{candidate.commercial_use}", lang),
        weakest=weakest,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
