"""Messages, tools and formats: what a chat completion is asked with beside numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kiban.serve.fields import Empty, Schema, Strict, wrong


class TextPart(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[TextPart], Tag("~parts")],
    Discriminator(lambda value: "~parts" if isinstance(value, list) else "~text"),
]


class CalledFunction(Strict):
    """What an assistant called: arguments is JSON."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One message. What clients repeat from an answer of ours (refusal, audio ...) has to be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: Empty = None
    annotations: Empty = None
    audio: Empty = None
    function_call: Empty = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise wrong("content", "is missing")
        if self.tool_calls and self.role != "assistant":
            raise wrong("tool_calls", "stand in messages of an assistant")
        return self

    @property
    def text(self) -> str:
        """The content, its pieces joined."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class Function(Strict):
    """A function that the model may call; parameters is the JSON schema of its arguments."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None  # calls always fit their schema here


class Tool(Strict):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class ChosenName(Strict):
    """The function that has to be called."""

    name: str


class Chosen(Strict):
    """A tool that has to be used."""

    type: Literal["function"]
    function: ChosenName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~word")] | Annotated[Chosen, Tag("~tool")],
    Discriminator(lambda value: "~word" if isinstance(value, str) else "~tool"),
]


class JsonSchema(Strict):
    """A named schema that the answer has to fit."""

    name: Annotated[str, Field(max_length=64)]
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None  # answers always fit here


class PlainFormat(Strict):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Some JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]
