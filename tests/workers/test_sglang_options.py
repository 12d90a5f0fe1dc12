"""Warmpath's options beside SGLang's: what is whose, what is refused, and a configuration file with both."""

from __future__ import annotations

import pytest

from workers.sglang.options import parse


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_not_ours_is_sglangs_in_its_order():
    line = parse(["--tp", "2", "--nats", "nats://h:1", "--model-path=m", "--page-size", "16", "--trust-remote-code"])
    assert line.engine == ["--tp", "2", "--model-path=m", "--page-size", "16", "--trust-remote-code"]
    assert line.options.nats == "nats://h:1"


def test_no_abbreviation_of_ours_takes_an_option_of_sglangs():
    assert parse(["--model-path", "m", "--name", "x"]).engine == ["--model-path", "m", "--name", "x"]


@pytest.mark.parametrize(
    ("given", "tool", "reasoning"),
    [
        (["--tool-call-parser", "hermes"], "hermes", None),
        (["--dyn-tool-call-parser", "llama3_json", "--dyn-reasoning-parser", "deepseek_r1"], "llama3", "deepseek-r1"),
        (["--dyn-tool-call-parser", "hermes", "--reasoning-parser", "qwen3"], "hermes", "qwen3"),
    ],
)
def test_parsers_by_either_name(given, tool, reasoning):
    options = parse(["--model-path", "m", *given]).options
    assert (options.tool_call_parser, options.reasoning_parser) == (tool, reasoning)


def test_dynamos_endpoint_names_the_namespace():
    assert parse(["--model-path", "m", "--endpoint", "dyn://prod.backend.generate"]).options.namespace == "prod"
    assert parse(["--model-path", "m"]).options.namespace == "default"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["--attach", "http://h:1", "--tp", "2"],
            "--tp: no option of warmpath's, and with --attach no server is launched",
        ),
        (["--attach", "http://h:1", "--restart", "always"], "--restart is for launching"),
        (["--attach", "http://h:1", "--engine-command", "x"], "--engine-command is for launching"),
        (["--model-path", "m", "--tool-call-parser", "a", "--dyn-tool-call-parser", "b"], "give one"),
        (
            ["--model-path", "m", "--custom-jinja-template", "/no/such"],
            "--custom-jinja-template /no/such: no such file",
        ),
        (["--model-path", "m", "--custom-jinja-template", __file__, "--use-sglang-tokenizer"], "give SGLang's"),
        (
            ["--model-path", "m", "--embedding-worker", "--reasoning-parser", "x"],
            "--reasoning-parser is for generations",
        ),
        (["--model-path", "m", "--endpoint", "a.b.c", "--namespace", "d"], "--endpoint names namespace a"),
        (["--model-path", "m", "--endpoint", "a.b"], "is not NAMESPACE.COMPONENT.ENDPOINT"),
        (["--model-path", "m", "--engine-route", "="], "is not NAME or NAME=PATH"),
        (["--model-path", "m", "--migration-limit", "-1"], "--migration-limit"),
        (["--model-path", "m", "--drain-seconds", "0"], "--drain-seconds"),
        (["--config", "/no/such/file"], "--config /no/such/file: "),
    ],
)
def test_what_cannot_be_is_one_line(arguments, named, capsys):
    assert named in refused(arguments, capsys)


def test_a_configuration_file_holds_both_kinds(tmp_path):
    file = tmp_path / "worker.yaml"
    file.write_text(
        "nats: nats://file:1\nmigration_limit: 2\nuse-sglang-tokenizer: true\nengine-route: [a, b=c]\n"
        "model-path: m\ntp-size: 4\nenable-metrics: true\n"
    )
    line = parse(["--config", str(file), "--nats", "nats://line:1", "--page-size", "16"])
    assert line.options.nats == "nats://line:1"
    assert (line.options.migration_limit, line.options.use_sglang_tokenizer) == (2, True)
    assert line.options.engine_routes == [("a", "/a"), ("b", "/c")]
    assert line.engine == ["--page-size", "16"]
    assert line.engine_config == {"model-path": "m", "tp-size": 4, "enable-metrics": True}


@pytest.mark.parametrize(("content", "named"), [("[1, 2]", "expected a map"), ("a: [", "no YAML"), ("1: 2", "a map")])
def test_a_file_that_is_no_map_of_options(tmp_path, capsys, content, named):
    file = tmp_path / "worker.yaml"
    file.write_text(content)
    assert named in refused(["--config", str(file)], capsys)
