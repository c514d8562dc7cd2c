"""The prompt that a model's own chat template makes of a conversation."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from kiban.errors import FormatError, KibanError
from kiban.inputs import sandbox


def render(
    template: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, special: Mapping[str, str]
) -> str:
    """The prompt text of messages. special: bos_token, eos_token ... as the template names them.

    Raises FormatError if the template is broken or refuses the messages, LimitError if it does too much.
    """
    compiled = sandbox.compile_template(template)
    values = {
        **special,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "tools": None,  # templates ask for these two by name and not whether they are defined
        "documents": None,
        "raise_exception": _refuse,
        "strftime_now": _now,
    }
    stop = sandbox.start()
    try:
        return "".join(compiled.generate(values))
    except KibanError:
        raise
    except Exception as error:  # the template is foreign code: whatever it raises is its fault
        raise FormatError("chat template", why=f"fails on these messages: {error}") from error
    finally:
        stop()


def _refuse(message: str) -> None:
    raise FormatError("chat template", why=f"does not accept these messages: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:100])
