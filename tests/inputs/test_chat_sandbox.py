"""Chat templates: the same text as transformers, and no way to harm or hang the process."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import pytest

from kiban.errors import FormatError, KibanError, LimitError
from kiban.inputs import sandbox
from kiban.inputs.chat import render

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_LIKE = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if tools is not none %}{{- "tools" }}{%- endif %}
{%- set ns = namespace(last=-1, seen=[]) %}
{#- a comment #}
{%- for message in messages %}
    {%- set content = message.content | trim %}
    {%- if message.role in ["user", "assistant"] %}{%- set ns.last = loop.index0 %}{%- endif %}
    {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' ~ content ~ '<|eot_id|>' }}
{%- endfor %}
{{- date_string | length }} {{ ns.last }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{%- for message in messages[::-1] if message.role != 'system' %}{% if loop.last %}{{ loop.index }}{% endif %}{% endfor %}
{%- macro show(x, deep=false) %}[{{ x | tojson }}{% if deep %}{{ x | tojson(indent=2) }}{% endif %}]{% endmacro %}
{{ show(messages[0]) }}{{ show({'あ': [1, 2.5, none, true]}, deep=true) }}
{%- for key, value in messages[0].items() | sort %}{{ key }}={{ value | string | upper | replace('A', 'b') }};{% endfor %}
{%- for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ m.role | title }}{% endfor %}
{%- generation %}{{ messages | map(attribute='role') | join(', ') }}{% endgeneration %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
TALK = [
    {"role": "system", "content": "あなたは親切です。"},
    {"role": "user", "content": " こんにちは！ <b>\n"},
    {"role": "assistant", "content": "<think>考える</think>\nはい。"},
    {"role": "user", "content": "2 + 2 は？"},
]


def theirs(template: str, messages: list[dict[str, str]], prompt: bool) -> str:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=prompt, tokenize=False)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[1:2]], ids=["system", "no system", "one turn"])
@pytest.mark.parametrize("template", [CHATML, LLAMA2, LLAMA3_LIKE], ids=["chatml", "llama2", "llama3"])
def test_real_templates_give_the_text_that_transformers_gives(
    template: str, messages: list[dict[str, str]], prompt: bool
) -> None:
    ours = render(template, messages, add_generation_prompt=prompt, special=SPECIAL)
    assert ours == theirs(template, messages, prompt)


def test_a_template_may_refuse_the_messages() -> None:
    with pytest.raises(FormatError, match="must alternate"):
        render(LLAMA2, [TALK[1], TALK[1]], add_generation_prompt=True, special=SPECIAL)


def test_a_long_conversation_is_no_bomb() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "長い話。" * 100} for i in range(2001)]
    for template in (CHATML, LLAMA2, LLAMA3_LIKE):
        assert len(render(template, messages, add_generation_prompt=True, special=SPECIAL)) > 800_000


def run(template: str) -> str:
    return render(template, [{"role": "user", "content": "hi"}], add_generation_prompt=True, special=SPECIAL)


DOUBLING = "{% set ns = namespace(x=X) %}{% for i in range(60) %}{% set ns.x = Y %}{% endfor %}"
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over text": "{% set s = 'a' * 3000 %}" + "{% for a in s %}" * 4 + "{% endfor %}" * 4,
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "range to list": "{{ range(10**9) | list }}",
    "huge range": "{{ range(10**30) }}",
    "doubling by ~": DOUBLING.replace("X", "'a'").replace("Y", "ns.x ~ ns.x"),
    "doubling by +": DOUBLING.replace("X", "'a'").replace("Y", "ns.x + ns.x"),
    "doubling by *": DOUBLING.replace("X", "'a'").replace("Y", "ns.x * 2"),
    "doubling by join": DOUBLING.replace("X", "'a'").replace("Y", "[ns.x, ns.x] | join"),
    "doubling by method": DOUBLING.replace("X", "'a'").replace("Y", "''.join([ns.x, ns.x])"),
    "doubling by replace": DOUBLING.replace("X", "'a'").replace("Y", "ns.x | replace('a', 'aa')"),
    "doubling by replace method": DOUBLING.replace("X", "'a'").replace("Y", "ns.x.replace('a', 'aa')"),
    "doubling in a loop of set blocks": DOUBLING.replace("X", "'a'").replace(
        "{% set ns.x = Y %}", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"
    ),
    "doubling lists": DOUBLING.replace("X", "[1]").replace("Y", "ns.x + ns.x"),
    "a tree of lists": DOUBLING.replace("X", "[1]").replace("Y", "[ns.x, ns.x]") + "{{ ns.x }}",
    "a tree of lists, compared": DOUBLING.replace("X", "[1]").replace("Y", "[ns.x, ns.x]") + "{{ ns.x == [1] }}",
    "a tree of dicts": DOUBLING.replace("X", "1").replace("Y", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "a tree of tuples": DOUBLING.replace("X", "1").replace("Y", "(ns.x, ns.x)") + "{{ ns.x | string }}",
    "a tree of namespaces": DOUBLING.replace("X", "1").replace("Y", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "a tree of dict()": DOUBLING.replace("X", "1").replace("Y", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "one huge concatenation": "{% set s = 'a' * 4000000 %}{{ " + " ~ ".join(["s"] * 300) + " }}",
    "many outputs": "{% set s = 'a' * 4000000 %}" + "{{ s }}" * 3000,
    "constants in a loop": "{% set x %}{% for i in range(100000) %}" + "長" * 100_000 + "{% endfor %}{% endset %}",
    "center": "{{ 'a' | center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "json indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "json depth": DOUBLING.replace("X", "[1] * 4000").replace("range(60)", "range(900)").replace("Y", "[ns.x]")
    + "{{ ns.x | tojson(indent=16) }}",
    "wordwrap": "{{ 'a b' | wordwrap(1, wrapstring='x' * 10**9) }}",
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat from the left": "{{ 10**10 * 'a' }}",
    "repeat a list": "{{ ([0] * 10**10) | length }}",
    "bytes": "{{ 'a'.encode() * 10**10 }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "power": "{{ 10**10**10 }}",
    "power in small steps": "{% set ns = namespace(x=999) %}{% for i in range(9) %}{% set ns.x = ns.x ** 999 %}{% endfor %}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(90) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "macro recursion": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursive loop": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "sorting in a loop": "{% set s = 'ab' * 100000 %}{% for i in range(90000) %}{% set x = s | sort %}{% endfor %}",
    "searching in a loop": "{% set s = 'ab' * 2000000 %}{% for i in range(90000) %}{{ 'c' in s }}{% endfor %}",
    "counting in a loop": "{% set s = 'ab' * 2000000 %}{% for i in range(90000) %}{{ s.count('c') }}{% endfor %}",
    "slicing in a loop": "{% set s = 'ab' * 2000000 %}{% for i in range(90000) %}{% set x = s[1:] %}{% endfor %}",
    "selecting": "{% set s = 'ab' * 2000000 %}{{ range(90000) | map('string') | select('in', s) | list | length }}",
    "upper in a loop": "{% set s = 'ab' * 2000000 %}{% for i in range(90000) %}{% set x = s | upper %}{% endfor %}",
    "filter block": "{% filter replace('a', 'b' * 4000000) %}" + "a" * 1000 + "{% endfilter %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_an_error(name: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(KibanError):
        run(BOMBS[name])
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ range.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__ }}",
        "{{ lipsum() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ [].pop() }}",
        "{{ (1).real }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ 'x'.format_map({}) }}",
        "{{ 'x' | e('y') }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x.y }}",
        "{{ nothing.at.all }}",
        "{{ messages[0]['content'](1) }}",
        "{{ [1] | first(2, 3) }}",
        "{{ namespace() }}",
        "{{ strftime_now }}",
    ],
)
def test_what_is_not_allowed_is_an_error(template: str) -> None:
    try:
        text = run(template)
    except FormatError:
        return
    assert text in ("", "[Undefined]"), "an attribute that is not shown is undefined"


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{% for %}",
        "{% endfor %}",
        "{% unknown %}",
        "{{ x | nofilter }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ " + "[" * 500 + "]" * 500 + " }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{{ " + "+".join(["1"] * 50_000) + " }}",
        "{{ a" + ".b" * 50_000 + " }}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500,
        "{% for a in b %}" * 100 + "{% endfor %}" * 100,
        "a" * (sandbox.MAX_TEMPLATE + 1),
    ],
    ids=range(13),
)
def test_a_broken_template_is_told(template: str) -> None:
    with pytest.raises((FormatError, LimitError)):
        run(template)


def test_the_error_of_a_bomb_says_so() -> None:
    with pytest.raises(LimitError, match="steps"):
        run(BOMBS["nested loops"])


def test_messages_are_not_changed_and_one_rendering_leaves_the_next_its_steps() -> None:
    messages = [{"role": "user", "content": "あ"}]
    for _ in range(3):
        loop = "{% for i in range(200000) %}{% endfor %}{{ messages[0].content }}"
        assert render(loop, messages, add_generation_prompt=False, special={}) == "あ"
    assert messages == [{"role": "user", "content": "あ"}]


@pytest.mark.weights
def test_the_template_of_a_real_model(smollm2_gguf: Path) -> None:
    from kiban.inputs.tokenizer import Tokenizer
    from kiban.weights.gguf import read_gguf

    with read_gguf(smollm2_gguf) as file:
        template = Tokenizer.from_gguf(file.metadata).chat_template
    assert template is not None and re.search(r"im_start", template)
    for messages in (TALK, TALK[1:]):
        assert render(template, messages, add_generation_prompt=True, special=SPECIAL) == theirs(
            template, messages, True
        )
