"""Kinds of fields that the bodies of requests are made of, and the model that is strict about them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_STOP = 256  # characters


class Strict(BaseModel):
    """Types are not converted (true is no number), NaN is no number, and a field that is not here is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def wrong(field: str, message: str) -> PydanticCustomError:
    """A refusal of a field for what stands in another one."""
    return PydanticCustomError("unsupported", message, {"field": field})


def _listed(value: Any) -> Any:
    """One stop text, or none, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else value


def _zero(value: float | None) -> float | None:
    if value:
        raise PydanticCustomError("unsupported", "only 0 is supported; repetition_penalty is the way here")
    return value


def _empty(value: Any) -> Any:
    if value:
        raise PydanticCustomError("unsupported", "is not supported; leave it out")
    return value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]
Stops = Annotated[
    list[Stop],
    BeforeValidator(_listed, json_schema_input_type=Stop | list[Stop] | None),
    Field(max_length=MAX_STOPS),
]
Zero = Annotated[float | None, AfterValidator(_zero)]
Empty = Annotated[Any, AfterValidator(_empty)]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(min_length=1)]
Schema = dict[str, Any]
