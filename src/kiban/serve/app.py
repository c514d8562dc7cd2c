"""The routes, as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kiban import __version__
from kiban.errors import KibanError
from kiban.serve import pages, reading
from kiban.serve.auth import Keys, read_keys
from kiban.serve.gate import Gate
from kiban.serve.ledger import Ledger
from kiban.serve.limits import Guard, said
from kiban.serve.problems import RefusedError, invalid, refusal_of
from kiban.serve.replies import Json
from kiban.serve.schemas import ChatRequest, ClassifyRequest, CompletionRequest, EmbeddingRequest
from kiban.serve.served import Classifier, Served, Writer
from kiban.serve.service import Service
from kiban.serve.settings import Settings
from kiban.serve.writing import Chat, Completion

BODIES: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/classify": ClassifyRequest,
}
ROUTES = frozenset({*BODIES, *pages.ROUTES, "/v1/models", "/healthz", "/metrics", "/openapi.json"})


def create_app(models: Mapping[str, Served], settings: Settings) -> FastAPI:
    """The application over models by name. `app.state.service` is what its routes share, `app.state.gate` lets in.

    Raises ConfigError if the settings would open it to others without a key, or if a file of theirs cannot be used.
    """
    priced = settings.price_per_hour is not None
    keys = Keys(None) if settings.keys is None else read_keys(settings.keys, priced=priced)
    service = Service(models, settings, Ledger(settings.ledger), ROUTES)
    # No pages of FastAPI's own: they load scripts from elsewhere.
    app = FastAPI(title="kiban", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.gate = gate = Gate(service, keys)
    app.add_middleware(cast(Any, Guard), gate=gate)
    _add_errors(app)
    _add_facts(app, service)
    _add_models(app, service)
    pages.add_pages(app, service, keys)
    return app


def _add_models(app: FastAPI, service: Service) -> None:
    def note(request: Request, body: BaseModel) -> None:
        if service.settings.log_prompts:
            request.scope["state"]["note"].prompt = said(body)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        note(request, body)
        model = service.find(body.model, "chat")
        if isinstance(model, Classifier):
            return await reading.chat_with_classifier(service, request, body, model)
        assert isinstance(model, Writer)
        return await Chat(service, request, body, model).respond()

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        note(request, body)
        model = service.find(body.model, "generate")
        assert isinstance(model, Writer)
        return await Completion(service, request, body, model).respond()

    @app.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        note(request, body)
        return await reading.embed(service, request, body)

    @app.post("/v1/classify")
    async def classify(request: Request, body: ClassifyRequest) -> Response:
        note(request, body)
        return await reading.classify(service, request, body)


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return Json({"object": "list", "data": [_facts(model) for model in service.models.values()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in service.models:
            raise RefusedError(404, "there is no model of this name", code="model_not_found", param="model")
        return Json(_facts(service.models[name]))

    @app.get("/healthz")
    async def healthz() -> Response:
        if service.draining:
            return Json({"status": "closing"}, status_code=503)
        failed = [name for name, model in service.models.items() if model.load().failed]
        if failed:
            return Json({"status": "failed", "model": failed[0]}, status_code=503)
        return Json({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _facts(model: Served) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": model.name, "object": "model", "created": model.created, "owned_by": "kiban"}
    facts["abilities"] = list(model.abilities)
    if isinstance(model, Writer):
        facts["max_seq_len"] = model.engine.max_seq_len
    if isinstance(model, Classifier):
        facts["labels"] = list(model.labels)
    if model.report is not None:
        facts["report"] = f"/v1/reports/{quote(model.name)}"
    return facts


def _add_errors(app: FastAPI) -> None:
    def respond(request: Request, problem: RefusedError) -> Response:
        request.scope["state"]["note"].code = problem.code
        return Json(problem.body(), status_code=problem.status, headers=problem.headers)

    async def kiban_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, KibanError)
        return respond(request, refusal_of(error))

    async def wrong_body(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        schema = BODIES.get(request.url.path)
        return respond(request, invalid(error.errors(), list(schema.model_fields) if schema else []))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {404: "there is no such route", 405: "this route takes another method"}
        message = messages.get(error.status_code, "the body cannot be read as JSON")
        return respond(request, RefusedError(error.status_code, message, headers=error.headers))

    app.add_exception_handler(KibanError, kiban_error)
    app.add_exception_handler(RequestValidationError, wrong_body)
    app.add_exception_handler(HTTPException, http_error)
