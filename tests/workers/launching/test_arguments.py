"""What is added to an engine's arguments, what is kept, and what is refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from workers.sglang.launching.arguments import Wishes, complete, with_wishes
from workers.sglang.launching.command import Refused, Understood, scan

MODEL = ("--model-path", "m")


def launched(*arguments, wishes=None, known=None, binds=False):
    words = with_wishes([*MODEL, *arguments], wishes or Wishes())
    understood = Understood(scan(words), None if known is None else frozenset(known), binds)
    return complete(words, understood, wishes or Wishes())


def values(launch):
    return scan(launch.words)


def test_what_routing_needs_is_added_and_said():
    launch = launched("--dp-size", "2", binds=True)
    found = values(launch)
    events = json.loads(found["kv_events_config"])
    first = int(events["endpoint"].rpartition(":")[2])
    assert events == {
        "publisher": "zmq",
        "endpoint": f"tcp://127.0.0.1:{first}",
        "replay_endpoint": f"tcp://127.0.0.1:{first + 2}",
        "bind": True,
    }
    assert found["load_publish_endpoint"] == f"tcp://*:{first + 4}"
    assert (found["page_size"], found["decode_log_interval"]) == ("64", "4")
    assert launch.words[:4] == [*MODEL, "--dp-size", "2"]
    for option in ("--kv-events-config", "--load-publish-endpoint", "--page-size", "--decode-log-interval"):
        assert any(said.startswith(f"added {option} ") for said in launch.said)


def test_an_engine_that_cannot_bind_one_address_binds_all():
    events = json.loads(values(launched())["kv_events_config"])
    assert events["endpoint"].startswith("tcp://*:")
    assert "bind" not in events


def test_what_was_given_stays():
    given = ("--page-size=16", "--decode-log-interval", "1", "--load-publish-endpoint", "auto", "--port", "1")
    config = '{"publisher":"zmq","endpoint":"tcp://*:1","replay_endpoint":"tcp://*:2"}'
    launch = launched(*given, "--kv-events-config", config)
    assert launch.words == [*MODEL, *given, "--kv-events-config", config]
    assert launch.said == []


def test_an_option_that_this_version_lacks_is_not_added():
    known = ("model_path", "kv_events_config", "page_size")
    assert values(launched(known=known)).keys() == {"model_path", "kv_events_config", "page_size"}


@pytest.mark.parametrize(
    ("config", "said", "load"),
    [
        ('{"publisher":"null"}', "publishes nothing over TCP", False),
        ('{"publisher":"zmq","endpoint":"ipc:///x"}', "publishes nothing over TCP", False),
        ('{"publisher":"zmq","endpoint":"tcp://*:5557"}', "no replay_endpoint", True),
    ],
)
def test_events_that_are_worth_less_are_said(config, said, load):
    launch = launched("--kv-events-config", config)
    assert any(said in line for line in launch.said)
    assert ("load_publish_endpoint" in values(launch)) == load


def test_an_embedding_worker_is_one_for_the_engine_and_publishes_nothing():
    found = values(launched("--port", "1", wishes=Wishes(embedding=True)))
    assert found == {"model_path": "m", "port": "1", "is_embedding": True}


def test_warmpaths_options_reach_the_engine():
    wishes = Wishes(
        tool_call_parser="hermes", reasoning_parser="qwen3", chat_template=Path("t.jinja"), log_level="debug"
    )
    found = values(launched(wishes=wishes))
    assert found["tool_call_parser"] == "hermes"
    assert found["reasoning_parser"] == "qwen3"
    assert found["chat_template"] == "t.jinja"
    assert found["log_level"] == "debug"
    assert found["enable_cache_report"] is True


@pytest.mark.parametrize(
    ("arguments", "wishes", "named"),
    [
        (["--api-key", "k"], Wishes(), "--api-key"),
        (["--ssl-certfile", "c"], Wishes(), "--ssl-certfile"),
        (["--smg-grpc-mode"], Wishes(), "--smg-grpc-mode"),
        (["--chat-template", "b"], Wishes(chat_template=Path("a")), "--custom-jinja-template a and --chat-template b"),
        (["--skip-tokenizer-init"], Wishes(text_mode=True), "--use-sglang-tokenizer"),
        (["--skip-tokenizer-init"], Wishes(tool_call_parser="x"), "--tool-call-parser"),
        (["--disaggregation-mode", "prefill"], Wishes(embedding=True), "--embedding-worker"),
        (["--kv-events-config", "{"], Wishes(), "--kv-events-config"),
    ],
)
def test_what_cannot_go_together_is_refused(arguments, wishes, named):
    with pytest.raises(Refused, match=named):
        launched(*arguments, wishes=wishes)


def test_a_default_port_that_is_taken_is_replaced():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 30000))
        except OSError:
            pass  # it is taken, by whomever
        else:
            taken.listen()
        launch = launched()
    assert launch.port != 30000
    assert any("--port" in said for said in launch.said)


def test_prefill_workers_get_bootstrap_ports_of_their_own():
    assert "disaggregation_bootstrap_port" in values(launched("--disaggregation-mode", "prefill"))
    assert "disaggregation_bootstrap_port" not in values(launched("--disaggregation-mode", "decode"))


@pytest.mark.parametrize(
    ("host", "wishes", "url"),
    [
        ((), Wishes(), "http://127.0.0.1:1"),
        (("--host", "10.0.0.5"), Wishes(), "http://10.0.0.5:1"),
        (("--host", "0.0.0.0"), Wishes(broker="nats://127.0.0.1:4222,nats://10.0.0.2:4222"), "http://127.0.0.1:1"),
        (("--host", "0.0.0.0"), Wishes(advertise_host="gpu7"), "http://gpu7:1"),
        (("--host", "::1"), Wishes(), "http://[::1]:1"),
    ],
)
def test_where_routers_reach_it(host, wishes, url):
    launch = launched(*host, "--port", "1", wishes=wishes)
    assert launch.advertised == url
    assert launch.host == ("127.0.0.1" if "0.0.0.0" in host else host[-1] if host else "127.0.0.1")


def test_only_the_first_node_leads():
    assert launched("--nnodes", "2", "--node-rank", "0").leads
    assert not launched("--nnodes", "2", "--node-rank", "1").leads
