"""Options that many verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TRIAL = 2000  # documents of a dry run

Out = Annotated[Path | None, typer.Option(help="new folder for the result")]
Field = Annotated[str, typer.Option("--text", help="column of the text in JSONL and Parquet")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Lang = Annotated[str | None, typer.Option(help="ja or en; default: from LANG")]
