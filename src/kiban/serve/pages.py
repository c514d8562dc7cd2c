"""The page at `/`: its files, the reports of runs behind links that end by themselves, and what was used this month."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import secrets
import time
from importlib import resources
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from starlette.responses import Response

from kiban.serve.auth import Key, Keys
from kiban.serve.ledger import BILLION
from kiban.serve.problems import RefusedError
from kiban.serve.replies import Json
from kiban.serve.service import Service

SCRIPTS = ("app", "chat", "classify", "csv", "dom", "language", "net", "report", "similar", "usage", "words")
FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    **{f"/page/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}
REPORT = "/report"
PATHS = frozenset({*FILES, REPORT})  # those that need no key: the report's link is one
ROUTES = frozenset({"/", REPORT, "/v1/usage"})  # those that metrics tell apart
SECONDS = 60  # that a link to a report works
# Nothing from elsewhere, nothing inline, no text turned into markup, and no other page around this one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# A report quotes its table, so it runs nothing, asks for nothing, and is a stranger to the page that shows it.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; frame-ancestors 'self'; "
    "base-uri 'none'; sandbox"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def add_pages(app: FastAPI, service: Service, keys: Keys) -> None:
    """Add the routes of this module."""
    for path, (name, kind) in FILES.items():
        _add_file(app, path, name, kind)
    _add_report(app, service)

    @app.get("/v1/usage")
    async def usage(request: Request) -> Response:
        return Json(await _usage(service, keys, request.scope["state"]["key"]))


def _add_file(app: FastAPI, path: str, name: str, kind: str) -> None:
    body = resources.files("kiban.serve").joinpath("page", name).read_bytes()
    headers = {**HEADERS, "content-security-policy": POLICY, "cache-control": "no-cache"}

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(body, media_type=f"{kind}; charset=utf-8", headers=headers)


def _add_report(app: FastAPI, service: Service) -> None:
    secret = secrets.token_bytes(32)

    def seal(model: str, until: str) -> bytes:
        return hmac.digest(secret, f"{until} {model}".encode(), hashlib.sha256).hex().encode()

    @app.get("/v1/reports/{name:path}")
    async def link(name: str) -> Response:
        """A link to the report of a model's run. A frame cannot send a key, so the link is one, for a minute."""
        if name not in service.models or service.models[name].report is None:
            raise RefusedError(
                404, "there is no report of a model of this name", code="report_not_found", param="model"
            )
        until = str(int(time.time()) + SECONDS)
        query = urlencode({"model": name, "until": until, "seal": seal(name, until).decode()})
        return Json({"object": "report", "model": name, "url": f"{REPORT}?{query}", "expires_in": SECONDS})

    @app.get(REPORT, include_in_schema=False)
    async def report(request: Request) -> Response:
        model, until, given = (request.query_params.get(name, "") for name in ("model", "until", "seal"))
        if not hmac.compare_digest(seal(model, until), given.encode()) or int(until) < time.time():
            raise RefusedError(403, "this link to a report has ended; open it from the page again", code="link_ended")
        path = service.models[model].report
        assert path is not None  # only then is a link made
        try:
            body = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            message = "the report is no longer where it was"
            raise RefusedError(404, message, code="report_not_found", param="model") from error
        headers = {**HEADERS, "content-security-policy": REPORT_POLICY, "cache-control": "no-store"}
        return Response(body, media_type="text/html; charset=utf-8", headers=headers)


async def _usage(service: Service, keys: Keys, key: Key) -> dict[str, object]:
    """What this key has used this month, or everybody if it may see that."""
    month = datetime.datetime.now(datetime.UTC).strftime("%Y-%m")
    seen = [one for one in keys.keys or () if key.sees_all or one.name == key.name]
    rows = [
        {
            "key": row.key,
            "model": row.model,
            "requests": row.requests,
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "cost": row.cost / BILLION,
        }
        for row in await asyncio.to_thread(service.ledger.month, month)
        if keys.open or key.sees_all or row.key == key.name
    ]
    budgets = [
        {"key": one.name, "monthly_budget": one.monthly_budget, "spent": service.ledger.spent(one.name) / BILLION}
        for one in seen
        if one.monthly_budget is not None
    ]
    currency = None if service.settings.price_per_hour is None else service.settings.currency
    return {"object": "usage", "month": month, "currency": currency, "data": rows, "budgets": budgets}
