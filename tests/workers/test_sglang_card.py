"""`/server_info` of a real server and of other versions → card and streams."""

from __future__ import annotations

import json

import pytest

from events.membership import Role
from workers.sglang.card import CardError, Chosen, Stream, describe

from . import captures

CHOSEN = Chosen("http://10.0.0.7:30000", "10.0.0.7:30000", 64)
MINIMAL = {"max_total_num_tokens": 2048, "version": "0.5.23"}
SOURCE = {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "topic": "kv", "block_size": 32}


def test_a_real_server():
    description = describe(captures.document("server_info.json"), CHOSEN, epoch=7)
    card = description.card
    assert (card.worker_id, card.epoch, card.endpoint) == ("10.0.0.7:30000", 7, "http://10.0.0.7:30000")
    assert (card.model, card.engine_version, card.ranks, card.role) == ("tinymodel", "0.5.23", 1, Role.AGGREGATED)
    assert (card.block_size, card.page_size) == (64, 16)
    assert (card.capacity_tokens, card.context_tokens, card.max_running_requests) == (2048, 2042, 1024)
    assert (card.kv_events, card.tiers) == (True, ("device",))
    assert (card.bootstrap_host, card.bootstrap_port) == (None, None)
    assert description[1:] == (
        Stream("10.0.0.7", 25557),
        Stream("10.0.0.7", 25657),
        Stream("10.0.0.7", 25558),
        "",
        False,
    )


def test_events_count_pages_in_their_own_size_and_a_named_host_stays():
    source = SOURCE | {"endpoint_host": "10.9.9.9", "load_endpoint_port_base": 6000}
    description = describe(MINIMAL | {"page_size": 16, "kv_events": source}, CHOSEN, 1)
    assert description.card.page_size == 32
    assert description.events == Stream("10.9.9.9", 5557, "kv")
    assert (description.replay, description.load) == (None, Stream("10.9.9.9", 6000))


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::", "[::]", ""])
def test_any_host_is_the_attached_one(host):
    chosen = CHOSEN._replace(url="http://[::1]:30000")
    description = describe(MINIMAL | {"kv_events": SOURCE | {"endpoint_host": host}}, chosen, 1)
    assert description.events.endpoint(2) == "tcp://[::1]:5559"


def test_versions_without_a_descriptor_are_read_from_their_flag():
    config = {"publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657", "topic": "t"}
    info = MINIMAL | {"version": "0.5.11", "page_size": 64, "kv_events_config": json.dumps(config)}
    description = describe(info, CHOSEN, 1)
    assert description.card.kv_events
    assert description.card.page_size == 64
    assert (description.events, description.replay) == (Stream("10.0.0.7", 5557, "t"), Stream("10.0.0.7", 5657))


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({}, '--kv-events-config \'{"publisher":"zmq"'),
        ({"kv_events": None, "kv_events_config": '{"publisher":"null"}'}, "publishes none"),
        ({"kv_events_config": '{"publisher":"zmq","endpoint":"ipc:///tmp/x"}'}, "publishes none over TCP"),
        ({"kv_events_config": '{"publisher":"zmq"}', "version": "0.5.4"}, "0.5.6 is the first"),
        ({"kv_events": SOURCE, "version": "0.5.3.post2"}, "0.5.6 is the first"),
        ({"kv_events": SOURCE, "version": "0.5.14", "dp_size": 2}, "0.5.15 is the first"),
        ({"kv_events": SOURCE, "nnodes": 2, "dp_size": 2}, "on 2 machines"),
    ],
)
def test_events_that_cannot_be_used(info, reason):
    description = describe(MINIMAL | info, CHOSEN, 1)
    assert not description.card.kv_events
    assert (description.events, description.replay) == (None, None)
    assert reason in description.no_events


@pytest.mark.parametrize(
    "info",
    [
        {"version": "0.5.14", "dp_size": 2, "enable_dp_attention": True},
        {"version": "0.5.15", "dp_size": 2},
        {"version": "0.6.0"},
        {"nnodes": 2},
        {"version": "main"},
    ],
)
def test_events_that_can(info):
    assert describe(MINIMAL | info | {"kv_events": SOURCE}, CHOSEN, 1).card.kv_events


def test_load_survives_unusable_events():
    info = MINIMAL | {"kv_events": SOURCE | {"load_endpoint_port_base": 6000}, "version": "0.5.4"}
    assert describe(info, CHOSEN, 1).load == Stream("10.0.0.7", 6000)


def test_roles():
    prefill = describe(MINIMAL | {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": 8998}, CHOSEN, 1)
    assert prefill.card.role == Role.PREFILL
    assert (prefill.card.bootstrap_host, prefill.card.bootstrap_port) == ("10.0.0.7", 8998)
    decode = describe(MINIMAL | {"disaggregation_mode": "decode", "disaggregation_bootstrap_port": 8998}, CHOSEN, 1)
    assert (decode.card.role, decode.card.bootstrap_port) == (Role.DECODE, None)
    assert describe(MINIMAL | {"disaggregation_mode": None}, CHOSEN, 1).card.role == Role.AGGREGATED


def test_what_is_missing_has_a_fallback():
    card = describe(MINIMAL | {"model_path": "a/b", "context_length": 1000, "max_running_requests": 9}, CHOSEN, 1).card
    assert (card.model, card.context_tokens, card.max_running_requests, card.page_size) == ("a/b", 1000, 9, 1)
    assert describe(MINIMAL, CHOSEN, 1).card.context_tokens == 2048
    assert describe(MINIMAL | {"served_model_name": "x"}, CHOSEN._replace(model="y"), 1).card.model == "y"
    assert describe(MINIMAL | {"enable_hierarchical_cache": True}, CHOSEN, 1).card.tiers == ("device", "host")


@pytest.mark.parametrize(
    ("info", "field"),
    [
        ({}, "max_total_num_tokens"),
        ({"max_total_num_tokens": "many"}, "max_total_num_tokens"),
        (MINIMAL | {"dp_size": None}, "dp_size"),
        (MINIMAL | {"disaggregation_mode": "both"}, "both"),
        (MINIMAL | {"kv_events": {"topic": ""}}, "endpoint_port_base"),
        (MINIMAL | {"kv_events_config": "{"}, "server_info"),
    ],
)
def test_what_cannot_be_used_is_named(info, field):
    with pytest.raises(CardError, match=field):
        describe(info, CHOSEN, 1)
