"""Requests made up from the server's own OpenAPI schema: no answer is a 5xx (reliability 23)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

MODELS = {
    "/v1/chat/completions": "tiny-chat",
    "/v1/completions": "tiny-chat",
    "/v1/embeddings": "tiny-encoder",
    "/v1/classify": "adopt-words",
}


def _check(live: Any, examples: int) -> Counter[int]:
    """Statuses of so many requests to each route that take a body, and of some to the others."""
    schema = schemathesis.openapi.from_dict(live.get("/openapi.json").json())
    schema.config.update(base_url=live.url)
    statuses: Counter[int] = Counter()
    routes = [found.ok() for found in schema.get_all_operations()]
    assert set(MODELS) <= {route.path for route in routes}
    for route in routes:
        for mode in GenerationMode:
            _check_route(route, mode, examples // 2 if route.path in MODELS else 10, statuses)
    assert live.idle(30) < 30
    return statuses


def _check_route(route: Any, mode: GenerationMode, examples: int, statuses: Counter[int]) -> None:
    if mode is GenerationMode.NEGATIVE and route.path not in MODELS:
        return  # nothing there can be wrong

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=route.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODELS[route.path]  # made-up names would all end at the first check
            if isinstance(case.body.get("max_tokens"), int) and not isinstance(case.body["max_tokens"], bool):
                case.body["max_tokens"] = min(case.body["max_tokens"], 4)
            elif "max_completion_tokens" not in case.body and route.path in ("/v1/chat/completions", "/v1/completions"):
                case.body["max_tokens"] = 2
        answer = case.call(timeout=60)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (case.body, answer.text)

    check()


def test_made_up_requests_find_no_fault(live: Any) -> None:
    """Reduced: 30 to each route."""
    statuses = _check(live, 30)
    assert sum(statuses.values()) >= 100 and statuses[200] >= 10 and statuses[400] >= 10, statuses


@pytest.mark.slow
def test_two_thousand_made_up_requests_find_no_fault(live: Any, case: Any) -> None:
    """Reliability 23 in full."""
    statuses = _check(live, 520)
    assert sum(statuses.values()) >= 2000
    case(23, examples=sum(statuses.values()), statuses=dict(sorted(statuses.items())))
