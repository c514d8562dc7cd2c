"""`kiban serve`: models for other programs, and for a team."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from kiban.cli.console import current
from kiban.cli.options import Lang
from kiban.errors import ConfigError

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
FOR_VLLM = {"models", "host", "port", "backend", "lang"}  # what it does not take it must not seem to take


def serve_command(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|RUN...", help="catalogue names, folders, GGUF files, runs of adopt; NAME=MODEL names one"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="address; any but this machine's own needs --keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="file of the keys; without it the server is open to you")] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="add a key to --keys, print it once, and end")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="of this machine, or of all replicas; answers then tell cost")
    ] = None,
    currency: Annotated[str, typer.Option(help="of the price and of budgets")] = "JPY",
    ledger: Annotated[
        Path | None, typer.Option(help="file that keeps what each key used; default: beside the keys")
    ] = None,
    weights: Annotated[
        Literal["auto", "fp32", "bf16", "int8", "int4"],
        typer.Option(help="how models that write keep their weights; auto: bf16 where that is faster here, else fp32"),
    ] = "auto",
    max_running: Annotated[int, typer.Option(min=1, help="answers that a model, or each replica, writes at once")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="answers that may wait for a model")] = 32,
    drain: Annotated[float, typer.Option(min=0, max=3600, help="seconds for running answers after SIGTERM")] = 30.0,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="write what is asked into the log")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="processes for each model, under Ray")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="cluster for the replicas; default: one on this machine")
    ] = None,
    backend: Annotated[
        Literal["kiban", "vllm"],
        typer.Option(
            help="vllm: on a GPU, its own server of one model; no keys but VLLM_API_KEY, no ledger, no limits"
        ),
    ] = "kiban",
    lang: Lang = None,
) -> None:
    """Serve models through OpenAI's API: chat, completions, embeddings, and /v1/classify for adopted models.

    Examples:

      kiban serve smollm2-135m-instruct

      kiban serve runs/adopt-tickets-20260401-093000/final minilm-l6 --port 9000

      kiban serve --new-key accounting --keys keys.json

      kiban serve chat=smollm2-135m-instruct --host 0.0.0.0 --keys keys.json --price-per-hour 50

      kiban serve smollm2-135m-instruct --replicas 4 --ray 10.0.0.5:6379

      kiban serve smollm2-135m-instruct --backend vllm

      curl http://127.0.0.1:8000/v1/models
    """
    if backend == "vllm":
        _become_vllm(context, models or [], host, port, lang)
    _check_installed()
    from kiban.serve.auth import new_key as add_key
    from kiban.serve.settings import Settings

    console = current(lang)
    if new_key is not None:
        if keys is None:
            raise ConfigError("--new-key", why="needs the file of the keys", hint="add --keys keys.json")
        token = add_key(keys, new_key)
        console.note(f"added to {keys}; this is shown once:")
        console.print(token)
        return
    if not models:
        raise ConfigError("kiban serve", why="no model given", hint="kiban serve smollm2-135m-instruct")
    settings = Settings(
        host=host,
        port=port,
        keys=keys,
        ledger=ledger or (None if keys is None else keys.with_suffix(".ledger.sqlite")),
        price_per_hour=price_per_hour,
        currency=currency,
        drain=drain,
        log_prompts=log_prompts,
    )
    from kiban.serve import logs
    from kiban.serve.app import create_app
    from kiban.serve.auth import read_keys
    from kiban.serve.replicas import open_replicas
    from kiban.serve.served import open_all
    from kiban.serve.server import listen, run

    if keys is not None:
        read_keys(keys)  # what is wrong there is told before models are loaded
    found = listen(settings)  # so is an address that is taken
    opening: Callable[..., Any] = partial(open_all, models)
    if replicas > 1 or ray is not None:
        opening = partial(open_replicas, models, replicas, ray)
    with console.progress() as progress:
        served, opened = opening(weights=weights, progress=progress, max_running=max_running, max_waiting=max_waiting)
    logs.begin()

    def started(url: str) -> None:
        abilities = ", ".join(f"{name} ({', '.join(model.abilities)})" for name, model in served.items())
        console.print(f"{url}/v1 serves {abilities}")
        if keys is None:
            console.note("open to every program on this machine; Ctrl-C ends it")

    try:
        run(create_app(served, settings), settings, found, on_start=started)
    finally:
        opened.close()


def _become_vllm(context: typer.Context, models: list[str], host: str, port: int, lang: str | None) -> NoReturn:
    sources = {name: context.get_parameter_source(name) for name in context.params.keys() - FOR_VLLM}
    given = sorted(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ConfigError("--backend vllm", field=option, why="is of kiban's own server", hint="leave one of them out")
    from kiban.serve import vllm
    from kiban.serve.served import named

    console = current(lang)
    with console.progress() as progress:
        line = vllm.command(named(models), host=host, port=port, progress=progress)
    console.note(shlex.join(line))
    vllm.become(line)


def _check_installed() -> None:
    missing = [name.replace("_", "-") for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        hint = 'pip install "kiban[serve]"'
        raise ConfigError("kiban serve", why=f"{', '.join(missing)} is not installed", hint=hint)
