"""The bodies of requests.

Fields of OpenAI's that change nothing here are accepted and ignored; they are those of `_Ignored`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kiban.serve.fields import Empty, Id, Stops, Strict, Text, Zero, wrong
from kiban.serve.messages import Chosen, Format, Message, PlainFormat, Tool, ToolChoice

MAX_ANSWERS = 128
MAX_TEXTS = 2048
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_SEED = 2**63 - 1


class _Ignored(Strict):
    """What says who asks and how to bill or keep it, at OpenAI."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class StreamOptions(Strict):
    """include_usage: end the stream with what it used."""

    include_usage: bool | None = None
    include_obfuscation: Any = None


class _Sampled(_Ignored):
    """What both routes that write text take. top_k, min_p and repetition_penalty are not OpenAI's."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=10**6)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Empty = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    stop: Stops = Field(default_factory=list)
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _only_streams_have_options(self) -> _Sampled:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "is for stream = true")
        return self


class ChatRequest(_Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "is for logprobs = true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("max_tokens", "is the old name of max_completion_tokens; give one of them")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise wrong("tools", "have to have different names")
        if isinstance(self.tool_choice, Chosen) and self.tool_choice.function.name not in names:
            raise wrong("tool_choice", "names a tool that is not among tools")
        if self.tool_choice == "required" and not names:
            raise wrong("tool_choice", "required needs tools")
        if names and self.tool_choice != "none" and self.response_format not in (None, PlainFormat(type="text")):
            raise wrong("response_format", "cannot be asked for together with tools")
        return self

    @property
    def num_top(self) -> int | None:
        """How many likely tokens to tell with each."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _prompt_kind(value: Any) -> str:
    if not isinstance(value, list):
        return "~text"
    first = value[0] if value else ""
    return "~rows" if isinstance(first, list) else "~texts" if isinstance(first, str) else "~ids"


Prompt = Annotated[
    Annotated[Text, Tag("~text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_ANSWERS), Tag("~texts")]
    | Annotated[list[Id], Field(min_length=1), Tag("~ids")]
    | Annotated[
        list[Annotated[list[Id], Field(min_length=1)]], Field(min_length=1, max_length=MAX_ANSWERS), Tag("~rows")
    ],
    Discriminator(_prompt_kind),
]


class CompletionRequest(_Sampled):
    """POST /v1/completions: a text, several, or token ids of the model's own tokenizer."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Empty = None
    suffix: Empty = None
    best_of: Empty = None


Texts = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS), Tag("~texts")],
    Discriminator(lambda value: "~texts" if isinstance(value, list) else "~text"),
]


class _Read(_Ignored):
    """What routes that read texts take. Token ids are refused: those of another tokenizer would be misread in silence."""

    model: str
    input: Texts

    @property
    def texts(self) -> list[str]:
        """One or more."""
        return [self.input] if isinstance(self.input, str) else list(self.input)


class EmbeddingRequest(_Read):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class ClassifyRequest(_Read):
    """POST /v1/classify. truncate: texts that are too long lose their end, as in training, instead of being refused."""

    truncate: bool | None = None
