"""Small models for the scheduler's tests."""

from __future__ import annotations

from typing import Any

import pytest

from kiban.engine.decoder import DecoderPlan
from listener import MODELS, plan_of, small_llama


@pytest.fixture(scope="session", params=MODELS)
def any_model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture(scope="session")
def plan() -> DecoderPlan:
    return plan_of(small_llama())
