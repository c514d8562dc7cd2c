"""The report: one HTML file that a manager can read, made from `result.json` alone."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from kiban.adopt.report.formats import Lang
from kiban.adopt.report.svg import STYLE
from kiban.adopt.report.view import NARROW, WIDE, View
from kiban.adopt.result import Result
from kiban.files import write_text

__all__ = ["write_report"]

PLOTS = ("pareto", "confusion", "curve")
# Control characters (XML has no way to write them), unpaired surrogates (UTF-8 has none), and the marks that would turn
# the direction of the text around them. Users' tables hold all three.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def write_report(run_folder: Path, *, lang: Lang) -> Path:
    """Write report.html and plots/*.svg into the run folder; returns the report's path.

    Reads result.json, and looks whether final/README.md is there to point at. An earlier report is replaced.
    Raises FormatError if result.json is not the result of a run.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    result = Result.read(run_folder / "result.json")
    view = View(result, lang)
    pictures: dict[str, list[Markup]] = {}
    for name in PLOTS:
        draw = getattr(view, name)()
        if draw is None:
            (run_folder / "plots" / f"{name}.svg").unlink(missing_ok=True)
            continue
        wide = draw(WIDE)
        _write(run_folder / "plots" / f"{name}.svg", wide.svg(alone=True))
        # Canvas escapes every text it is given, so its markup may pass as it is.
        pictures[name] = [Markup(wide.svg()), Markup(draw(NARROW).svg())]
    files = resources.files(__package__)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files.joinpath("template.html").read_text(encoding="utf-8"))
    page = template.render(
        view=view,
        t=view.say,
        lang=lang,
        result=result,
        plots=pictures,
        css=Markup(files.joinpath("style.css").read_text(encoding="utf-8") + STYLE),
        has_card=(run_folder / "final" / "README.md").exists(),
    )
    return _write(run_folder / "report.html", page)


def _write(path: Path, text: str) -> Path:
    """Replace a file at once, so that a reader never sees half of it."""
    path.parent.mkdir(exist_ok=True)
    write_text(path, UNPRINTABLE.sub("", text))
    return path
