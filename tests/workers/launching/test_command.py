"""SGLang's parser in SGLang's interpreter: here an interpreter with a small package of that name."""

from __future__ import annotations

import sys

import pytest

from workers.sglang.launching.command import OtherCommand, Refused, SglangCommand

SERVER_ARGS = """
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path", required=True)
        parser.add_argument("--tp-size", "--tensor-parallel-size", type=int, default=1)
        parser.add_argument("--dp-size", type=int, default=1)
        parser.add_argument("--config")
        parser.add_argument("--enable-metrics", action="store_true")
"""
MERGER = """
class ConfigArgumentMerger:
    def __init__(self, parser): pass
    def merge_config_with_args(self, arguments):
        at = arguments.index("--config")
        return [*open(arguments[at + 1]).read().split(), *arguments[:at], *arguments[at + 2:]]
"""
EVENTS = """
class KVEventsConfig:
    model_fields = {"endpoint": None, "bind": None}
"""


@pytest.fixture
def sglang(tmp_path, monkeypatch):
    """A package `sglang` with as much as is asked of it; its events may be bound to one address or not."""
    root = tmp_path / "sglang" / "srt"
    for folder in (root.parent, root, root / "utils", root / "disaggregation"):
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("print('imported')\n")
    (root / "server_args.py").write_text(SERVER_ARGS)
    (root / "utils" / "server_args_config_parser.py").write_text(MERGER)
    (root / "disaggregation" / "kv_events.py").write_text(EVENTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return root


async def test_given_options_are_told_from_defaults(sglang):
    understood = await SglangCommand().understand(["--model-path", "m", "--tp", "4", "--enable-metrics"])
    assert understood.given == {"model_path": "m", "tp_size": 4, "enable_metrics": True}
    assert understood.has("dp_size")
    assert not understood.has("load_publish_endpoint")
    assert understood.binds_addresses


async def test_options_of_a_configuration_file_count_as_given(sglang, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("--dp-size 8")
    understood = await SglangCommand().understand(["--model-path", "m", "--config", str(config)])
    assert understood.given["dp_size"] == 8


async def test_an_older_version_binds_all_addresses(sglang):
    (sglang / "disaggregation" / "kv_events.py").write_text("class KVEventsConfig: model_fields = {}\n")
    assert not (await SglangCommand().understand(["--model-path", "m"])).binds_addresses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--model-path", "m", "--tp-size", "many"],
            "argument --tp-size/--tensor-parallel-size: invalid int value: 'many'",
        ),
        (["--model-path", "m", "--no-such-thing"], "unrecognized arguments: --no-such-thing"),
        ([], "the following arguments are required: --model-path"),
    ],
)
async def test_a_refusal_is_in_sglangs_words(sglang, arguments, said):
    with pytest.raises(Refused, match="SGLang: ") as refused:
        await SglangCommand().understand(arguments)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_an_interpreter_without_sglang_is_said():
    with pytest.raises(Refused, match=f"{sys.executable} has no SGLang"):
        await SglangCommand().understand(["--model-path", "m"])


async def test_no_interpreter_at_all():
    with pytest.raises(Refused, match="--python /no/such/python"):
        await SglangCommand("/no/such/python").understand([])


@pytest.mark.parametrize("command", ["", "  ", "'unfinished"])
def test_a_command_that_is_none(command):
    with pytest.raises(Refused, match="--engine-command"):
        OtherCommand(command)
