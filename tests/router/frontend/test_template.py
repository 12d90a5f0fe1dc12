from __future__ import annotations

import datetime as dt

import pytest

from router.frontend.template import ChatTemplate, TemplateRefused

CHAT = [{"role": "user", "content": "Hi"}]


def render(source: str, **arguments: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(CHAT, arguments)


def test_the_generation_prompt_is_asked_for() -> None:
    assert render("{% if add_generation_prompt %}yes{% endif %}") == "yes"


def test_blocks_leave_no_white_space() -> None:
    assert (
        render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}") == "Hi\n"
    )


def test_json_is_not_escaped_for_html() -> None:
    assert render("{{ value | tojson }}", value={"a": "<é&>"}) == '{"a": "<é&>"}'
    assert render("{{ value | tojson(indent=1) }}", value=[1]) == "[\n 1\n]"


def test_loops_can_be_left() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"


def test_generation_blocks_are_their_bodies() -> None:
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "aHib"


def test_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(dt.datetime.now(dt.UTC).astimezone().year)


def test_arguments_of_a_request_do_not_replace_the_messages() -> None:
    assert render("{{ messages[0].content }}{{ bos_token }}{{ x }}", messages=[], bos_token="!", x=1) == "Hi<s>1"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe|not safely callable"),
    ],
)
def test_what_a_template_does_not_take_is_said(source: str, message: str) -> None:
    with pytest.raises(TemplateRefused, match=message):
        render(source)
