"""The `kiban` command. Verbs load on first use, so that `kiban --help` answers at once."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer

from kiban import __version__
from kiban.cli.adopt import adopt_command
from kiban.cli.data import data_app
from kiban.cli.evaluate import eval_command
from kiban.cli.models import models_app
from kiban.cli.pretrain import pretrain_command
from kiban.cli.run import run_command
from kiban.cli.serve import serve_command
from kiban.cli.tokenizer import tokenizer_app
from kiban.cli.tour import tour_command
from kiban.errors import KibanError

EPILOG = "Begin with: kiban adopt examples/data/debian-ja.csv --text 本文 --label 区分 --time 5m"

app = typer.Typer(
    name="kiban",
    help="Choose a foundation model for your own data, make it yours, measure it honestly, and use it.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("adopt", no_args_is_help=True)(adopt_command)
app.command("run", no_args_is_help=True)(run_command)
app.command("serve", no_args_is_help=True)(serve_command)
app.command("eval", no_args_is_help=True)(eval_command)
app.command("pretrain", no_args_is_help=True)(pretrain_command)
app.command("tour")(tour_command)
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"kiban {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    if debug:
        os.environ["KIBAN_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> Any:
    """Run the command; errors that a user can cause print as one line.

    Exits with 1 for those and where a reader of the output has gone, 2 for wrong usage, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # What is piped is UTF-8 whatever the console speaks: JSON has to be, and cp932 has no sign for much of ours.
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        return app(arguments)
    except KibanError as error:
        if os.environ.get("KIBAN_DEBUG"):
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
