"""Chat templates: messages → the prompt that the model was trained on.

Jinja in the dialect of Hugging Face's `apply_chat_template`: a sandbox, trimmed blocks, `raise_exception`, `strftime_now`, a
`tojson` that does not escape HTML, `break` and `continue`, and `generation` blocks, which mark text without changing it.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jinja2.nodes import Node
    from jinja2.parser import Parser


class TemplateRefused(Exception):
    """The template does not take these messages; the text says why."""


class ChatTemplate:
    """A compiled template and the special tokens that it may name.

    >>> source = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{% endfor %}"
    >>> template = ChatTemplate(source, {"bos_token": "<s>"})
    >>> template.render([{"role": "user", "content": "Hi"}])
    '<s>user: Hi'
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        :raises jinja2.TemplateSyntaxError: `source` is no template.
        """
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    def __repr__(self) -> str:
        return f"ChatTemplate({self._special_tokens})"

    def render(self, messages: Iterable[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None) -> str:
        """The prompt, up to where the assistant is to speak. O(size).

        :raises TemplateRefused: the template raised an exception of its own, or the messages lack what it needs.
        """
        variables = {
            **(arguments or {}),
            **self._special_tokens,
            "messages": list(messages),
            "add_generation_prompt": True,
        }
        try:
            return self._template.render(variables)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateRefused(str(error)) from error


def template_fault(source: str) -> str:
    """What is wrong with a template, and in which line; empty: nothing.

    >>> template_fault("{% for %}")
    "line 1: Expected an expression, got 'end of statement block'"
    """
    try:
        ChatTemplate(source, {})
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return ""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what training counts as the assistant's; here simply its body."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Parser) -> list[Node]:
        """The block's body in its place."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002  the name that templates may use
    return dt.datetime.now().strftime(format)  # noqa: DTZ005  templates want the local date
