"""The live fake worker, over real sockets."""

import asyncio
import json
import signal
import struct
import sys
import time
from contextlib import asynccontextmanager
from hashlib import sha256

import aiohttp
import msgspec
import numpy as np
import openai
import pytest
import zmq
import zmq.asyncio

from events.blocks import sequence_hashes
from sim.engine import StepTiming
from sim.worker import FakeWorker, WorkerConfig
from sim.worker.server import Ports
from tests.sim.captures import capture_path

FAST = StepTiming(speed=100.0)
SLOW = StepTiming(decode_base_seconds=0.02)
DEADLINE_SECONDS = 10.0


class Client:
    """Asks one worker."""

    def __init__(self, worker, session):
        self.worker = worker
        self.session = session

    async def post(self, path, body=None, **options):
        async with self.session.post(self.worker.url + path, json=body, **options) as reply:
            return reply.status, await reply.text()

    async def get(self, path):
        async with self.session.get(self.worker.url + path) as reply:
            text = await reply.text()
            return json.loads(text) if reply.content_type == "application/json" else text

    async def generate(self, prompt, new=4, **fields):
        body = {"input_ids": list(prompt), "sampling_params": {"max_new_tokens": new}, **fields}
        status, text = await self.post("/generate", body)
        assert status == 200, text
        return json.loads(text)

    @asynccontextmanager
    async def stream(self, prompt, new=4, path="/generate", **fields):
        body = {"input_ids": list(prompt), "sampling_params": {"max_new_tokens": new}, "stream": True, **fields}
        async with self.session.post(self.worker.url + path, json=body) as reply:
            yield reply

    async def events(self, prompt, new=4, **fields):
        async with self.stream(prompt, new, **fields) as reply:
            assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            return parse_events(await reply.read())

    async def load(self, rank=0):
        return (await self.get("/v1/loads"))["loads"][rank]

    async def idle(self):
        """Wait until no rank has a request."""
        await self.until(lambda load: load["num_running_reqs"] == load["num_waiting_reqs"] == 0)

    async def until(self, condition):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not all(condition(load) for load in (await self.get("/v1/loads"))["loads"]):
            assert time.monotonic() < deadline, "the load never became what was waited for"
            await asyncio.sleep(0.005)


def parse_events(data):
    assert data.endswith(b"\n\n")
    parts = data[:-2].split(b"\n\n")
    assert all(part.startswith(b"data: ") for part in parts)
    assert parts[-1] == b"data: [DONE]"
    return [json.loads(part[6:]) for part in parts[:-1]]


@pytest.fixture
async def start():
    """Start workers that live as long as the test; each with a client."""
    running = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(DEADLINE_SECONDS)) as session:

        async def begin(**options):
            worker = FakeWorker(WorkerConfig(**{"timing": FAST, "max_total_tokens": 4096, **options}))
            await worker.start()
            running.append(worker)
            return Client(worker, session)

        yield begin
        for worker in running:
            await worker.stop()


@pytest.fixture
def zmq_context():
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


async def replay(context, port, begin=0):
    """All replayed frames, the end mark included."""
    socket = context.socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    await socket.send_multipart([b"", begin.to_bytes(8, "big")])
    replies = []
    while not replies or replies[-1][-1] != b"":
        replies.append(await asyncio.wait_for(socket.recv_multipart(), DEADLINE_SECONDS))
    socket.close(0)
    return replies


async def subscribe(context, port, client):
    """A subscriber that has seen its first frame: made to appear by flushing until it does."""
    socket = context.socket(zmq.SUB)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.subscribe(b"")
    while not await socket.poll(20):
        assert (await client.post("/flush_cache"))[0] == 200
    last = None
    while await socket.poll(50):
        last = await socket.recv_multipart()
    return socket, int.from_bytes(last[1], "big")


async def receive(socket):
    frames = await asyncio.wait_for(socket.recv_multipart(), DEADLINE_SECONDS)
    return frames[0], int.from_bytes(frames[1], "big"), msgspec.msgpack.decode(frames[2])


# OpenAI


async def test_the_openai_client_talks_to_it(start):
    client = await start(enable_cache_report=True)
    async with openai.AsyncOpenAI(base_url=client.worker.url + "/v1", api_key="none") as api:
        assert [model.id async for model in api.models.list()] == ["tinymodel"]
        messages = [{"role": "user", "content": "What is the weather like in the mountains today? " * 4}]
        whole = await api.chat.completions.create(model="tinymodel", messages=messages, max_tokens=6)
        stream = await api.chat.completions.create(
            model="tinymodel", messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert len(text.split()) == 6
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
        assert chunks[-1].usage.completion_tokens == 6
        assert whole.usage.prompt_tokens_details.cached_tokens == 0
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 16
        completion = await api.completions.create(model="tinymodel", prompt="Once upon a time", max_tokens=3)
        assert len(completion.choices[0].text.split()) == 3
        pieces = await api.completions.create(model="tinymodel", prompt="Once upon a time", max_tokens=3, stream=True)
        assert "".join([piece.choices[0].text async for piece in pieces]) == completion.choices[0].text
        with pytest.raises(openai.BadRequestError, match="longer than the model's context length"):
            await api.completions.create(model="tinymodel", prompt=[5] * 40_000)


async def test_a_text_is_tokenized_as_a_prompt_is(start):
    client = await start()
    text = "What is the weather like?"
    asked = {"prompt": text, "add_special_tokens": False}
    status, plain = await client.post("/v1/tokenize", asked)
    tokens = json.loads(plain)["tokens"]
    assert (status, json.loads(plain)["count"]) == (200, len(tokens))
    _, special = await client.post("/tokenize", {"prompt": text})
    _, answer = await client.post("/generate", {"text": text, "sampling_params": {"max_new_tokens": 1}})
    assert json.loads(special)["count"] == json.loads(answer)["meta_info"]["prompt_tokens"]
    assert json.loads(special)["tokens"][-len(tokens) :] == tokens
    assert (await client.post("/v1/tokenize", {"prompt": 5}))[0] == 400
    client = await start(skip_tokenizer_init=True)
    assert (await client.post("/v1/tokenize", asked))[0] == 400


async def test_a_chat_goes_on_where_the_cache_ends(start):
    client = await start(enable_cache_report=True, page_size=1)
    messages = [{"role": "user", "content": "Tell me about the castle by the river."}]
    first = json.loads((await client.post("/v1/chat/completions", {"messages": messages, "max_tokens": 20}))[1])
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And the bridge?"}]
    second = json.loads((await client.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2}))[1])
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["total_tokens"] - 2  # all but the last token, and the answer's end


async def test_stop_texts_and_natural_ends(start):
    client = await start(eos_after_tokens=9)
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    whole = json.loads((await client.post("/v1/chat/completions", body))[1])["choices"][0]
    assert (whole["finish_reason"], whole["matched_stop"]) == ("stop", 2)
    words = whole["message"]["content"].split(" ")[1:]
    assert len(words) == 8
    stop = " " + words[3]
    stopped = json.loads((await client.post("/v1/chat/completions", body | {"stop": [stop]}))[1])["choices"][0]
    assert (stopped["finish_reason"], stopped["matched_stop"]) == ("stop", stop)
    assert stopped["message"]["content"] == whole["message"]["content"].partition(stop)[0]
    ids = (await client.generate(range(9), 8))["output_ids"]
    params = {"max_new_tokens": 8, "stop_token_ids": [ids[2]]}
    reply = json.loads((await client.post("/generate", {"input_ids": list(range(9)), "sampling_params": params}))[1])
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": ids[2]}
    params |= {"ignore_eos": True}
    reply = json.loads((await client.post("/generate", {"input_ids": list(range(9)), "sampling_params": params}))[1])
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 8}
    await client.idle()


# SGLang's own routes


async def test_generate_streams_are_shaped_like_recorded_ones(start):
    recorded = parse_events(capture_path("stream_generate.txt").read_bytes().rstrip(b"\n") + b"\n\n")
    client = await start()
    ours = await client.events(range(7), 3, rid="r1")
    assert [sorted(event) for event in ours] == [sorted(event) for event in recorded]
    for mine, theirs in zip(ours, recorded, strict=True):
        assert sorted(mine["meta_info"]) == sorted(theirs["meta_info"])
        same = ("id", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens", "dp_rank")
        assert [mine["meta_info"][key] for key in same] == [theirs["meta_info"][key] for key in same]


async def test_chat_streams_are_shaped_like_recorded_ones(start):
    recorded = parse_events(capture_path("stream_chat.txt").read_bytes().rstrip(b"\n") + b"\n\n")
    client = await start()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "model": "m", "stream": True}
    _, text = await client.post("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    ours = parse_events(text.encode())

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__

    assert [shape(event) for event in ours] == [shape(event) for event in recorded]


async def test_streams_are_cumulative_or_incremental(start):
    cumulative, incremental = await start(), await start(incremental_streaming_output=True)
    whole = await cumulative.generate(range(20), 5)
    all_so_far = await cumulative.events(range(20), 5)
    pieces = await incremental.events(range(20), 5)
    assert [event["output_ids"] for event in all_so_far] == [whole["output_ids"][: n + 1] for n in range(5)]
    assert [event["output_ids"] for event in pieces] == [[token] for token in whole["output_ids"]]
    assert "".join(event["text"] for event in pieces) == whole["text"] == all_so_far[-1]["text"]


async def test_another_worker_goes_on_with_the_same_text(start):
    first, second = await start(), await start(page_size=1)
    whole = await first.generate(range(30), 10)
    rest = await second.generate([*range(30), *whole["output_ids"][:4]], 6)
    assert rest["output_ids"] == whole["output_ids"][4:]


async def test_without_a_tokenizer_there_are_only_ids(start):
    client = await start(skip_tokenizer_init=True)
    assert set(await client.generate(range(10))) == {"output_ids", "meta_info"}
    assert (await client.post("/generate", {"text": "Hello"}))[0] == 400
    status, text = await client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert (status, json.loads(text)["object"]) == (400, "error")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input_ids": [1] * 3000}, r"Input length (3000 tokens) exceeds the maximum allowed length (2042 tokens)"),
        ({"input_ids": [1] * 40_000}, "The input (40000 tokens) is longer than the model's context length"),
        ({}, "Either text or input_ids should be provided."),
        ({"input_ids": []}, "The input is empty."),
        ({"input_ids": [[1], [2]]}, "input_ids"),
        ({"input_ids": [1], "sampling_params": {"max_new_tokens": "x"}}, "max_new_tokens"),
        ({"input_ids": [1], "sampling_params": {"n": 2}}, "n: only 1"),
        ({"input_ids": [1], "rid": 7}, "rid"),
        ({"input_ids": [1], "routed_dp_rank": 7}, "routed_dp_rank=7 out of range [0, 1)"),
        ([], "object"),
    ],
)
async def test_bad_requests_say_why(start, body, message):
    client = await start(max_total_tokens=2048)
    status, text = await client.post("/generate", body)
    assert status == 400
    assert message in json.loads(text)["error"]["message"]


async def test_a_request_id_is_used_once_at_a_time(start):
    client = await start(timing=SLOW)
    async with client.stream(range(9), 500, rid="same") as reply:
        await reply.content.readline()
        status, text = await client.post("/generate", {"input_ids": [1], "rid": "same"})
        assert (status, "Duplicate request ID" in text) == (400, True)


# Ranks


async def test_ranks_have_caches_of_their_own(start):
    client = await start(dp_size=2, page_size=1)
    first = await client.generate(range(12), routed_dp_rank=0)
    other = await client.generate(range(12), routed_dp_rank=1)
    again = await client.generate(range(12), data_parallel_rank=1)
    seen = [(reply["meta_info"]["dp_rank"], reply["meta_info"]["cached_tokens"]) for reply in (first, other, again)]
    assert seen == [(0, 0), (1, 0), (1, 11)]
    turns = [(await client.generate([500 + i] * 4))["meta_info"]["dp_rank"] for i in range(4)]
    assert turns == [0, 1, 0, 1]
    status, text = await client.post("/generate", {"input_ids": [1], "routed_dp_rank": 7})
    assert (status, json.loads(text)) == (400, {"error": {"message": "routed_dp_rank=7 out of range [0, 2)"}})


async def test_the_rank_header_goes_before_the_body(start):
    client = await start(dp_size=2, page_size=1, enable_cache_report=True)
    body = {"prompt": [5, 6, 7, 8, 9], "max_tokens": 2, "routed_dp_rank": 0}
    for _ in range(2):
        _, text = await client.post("/v1/completions", body, headers={"X-Data-Parallel-Rank": "1"})
    assert json.loads(text)["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert [(await client.load(rank))["total_prefill_uncached_tokens"] for rank in (0, 1)] == [0, 6]
    assert (await client.post("/v1/completions", body, headers={"X-Data-Parallel-Rank": "x"}))[0] == 400


# Events


def chained(events):
    """Check every stored id against SGLang's rule; returns the ids held at the end."""
    digests, held = {}, []
    for event in events:
        if event["type"] == "AllBlocksCleared":
            held.clear()
        elif event["type"] == "BlockRemoved":
            for one in event["block_hashes"]:
                held.remove(one)
        else:
            salt, parent, page = event.get("cache_salt"), event["parent_block_hash"], event["block_size"]
            previous = digests[parent] if parent is not None else b""
            if salt and parent is None:
                previous = sha256(b"sglang-cache-salt-v1\0" + salt.encode()).digest()
            for index, one in enumerate(event["block_hashes"]):
                tokens = event["token_ids"][index * page : (index + 1) * page]
                previous = sha256(previous + struct.pack(f"<{page}I", *tokens)).digest()
                assert one == int.from_bytes(previous[:8], "big", signed=True)
                digests[one] = previous
                held.append(one)
    return held


async def test_events_chain_and_a_late_subscriber_replays_them(start, zmq_context):
    client = await start(max_total_tokens=512, chunked_prefill_size=128)
    for index in range(6):
        await client.generate([1000 + index, *range(150)], 20)
    await client.generate(range(40), 20, cache_salt="pepper", session_id="s1")
    await client.generate(range(40), 20, extra_key="tenant")
    await client.idle()
    frames = await replay(zmq_context, client.worker.ports.replay)
    assert frames[-1] == [b"", b"", b"\xff" * 8, b""]
    assert [int.from_bytes(frame[2], "big") for frame in frames[:-1]] == list(range(len(frames) - 1))
    batches = [msgspec.msgpack.decode(frame[3]) for frame in frames[:-1]]
    assert {batch[2] for batch in batches} == {0}
    events = [event for batch in batches for event in batch[1]]
    assert events[0] == {"type": "AllBlocksCleared"}
    assert {event["type"] for event in events} == {"AllBlocksCleared", "BlockRemoved", "BlockStored"}
    assert any(event.get("cache_salt") == "pepper" and event.get("session_id") == "s1" for event in events)
    held = chained(events)
    statistics = client.worker.ranks[0].engine.statistics()
    assert 16 * len(held) == statistics.evictable_tokens
    middle = await replay(zmq_context, client.worker.ports.replay, len(frames) - 3)
    assert middle == frames[-3:]


async def test_subscribers_see_what_a_replay_sees(start, zmq_context):
    client = await start(topic="kv@w0", dp_size=2)
    for rank in (0, 1):
        socket, last = await subscribe(zmq_context, client.worker.ports.kv_events + rank, client)
        await client.generate(range(100, 140), 2, routed_dp_rank=rank)
        topic, seq, (_, events, source) = await receive(socket)
        assert (topic, seq, source) == (b"kv@w0", last + 1, rank)
        assert len(chained(events)) == 2
        replayed = await replay(zmq_context, client.worker.ports.replay + rank, seq)
        assert msgspec.msgpack.decode(replayed[0][3])[1] == events
        assert replayed[0][1] == b"kv@w0"
        socket.close(0)


async def test_an_older_version_writes_arrays_and_replays_three_frames(start, zmq_context):
    client = await start(version="0.5.17")
    await client.generate(range(40), 1)
    await client.idle()
    info = await client.get("/server_info")
    assert info["version"] == "0.5.17"
    assert "load_endpoint_port_base" not in info["kv_events"]
    frames = await replay(zmq_context, client.worker.ports.replay)
    assert frames[-1] == [b"", b"\xff" * 8, b""]
    events = [event for frame in frames[:-1] for event in msgspec.msgpack.decode(frame[2])[1]]
    assert [event[0] for event in events] == ["AllBlocksCleared", "BlockStored", "BlockStored"]
    assert events[2][2] == events[1][1][0]


async def test_dropped_batches_are_missing_live_and_there_on_replay(start, zmq_context):
    client = await start()
    socket, last = await subscribe(zmq_context, client.worker.ports.kv_events, client)
    await client.post("/_fault", {"kind": "drop_events", "count": 1})
    await client.generate(range(40), 1)
    await client.idle()
    await client.generate(range(100, 140), 1)
    assert (await receive(socket))[1] == last + 2
    replayed = await replay(zmq_context, client.worker.ports.replay, last + 1)
    assert len(replayed) == 3
    assert client.worker.ranks[0].events.statistics().dropped_batches == 1


@pytest.mark.parametrize(
    ("kind", "live", "replayed"),
    [
        ("lose_events", [1, 2, 3], [1, 2, 3]),
        ("duplicate_events", [0, 0, 1, 2, 3], [0, 1, 2, 3]),
        ("reorder_events", [1, 0, 2, 3], [0, 1, 2, 3]),
        ("delay_events", [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
async def test_disturbed_batches(start, zmq_context, kind, live, replayed):
    client = await start()
    socket, last = await subscribe(zmq_context, client.worker.ports.kv_events, client)
    await client.post("/_fault", {"kind": kind, "count": 1})
    for number in range(4):
        await client.generate(range(100 * number, 100 * number + 40), 1)
        await client.idle()
    assert [(await receive(socket))[1] - last - 1 for _ in live] == live
    frames = await replay(zmq_context, client.worker.ports.replay, last + 1)
    assert [int.from_bytes(frame[-2], "big") - last - 1 for frame in frames[:-1]] == replayed


async def test_the_cache_is_told_as_routers_name_it(start):
    client = await start(page_size=16)
    prompts = [np.arange(start, start + 200, dtype=np.uint32) for start in (0, 1000)]
    for prompt in [*prompts, np.concatenate([prompts[0][:100], prompts[1][:100]])]:
        await client.generate(prompt.tolist(), 1)
    await client.idle()
    content = await client.get("/_cache?block_size=64")
    expected = {block for prompt in prompts for block in sequence_hashes(prompt, 64).tolist()}
    expected |= set(sequence_hashes(np.concatenate([prompts[0][:100], prompts[1][:100]]), 64).tolist())
    assert set(content["ranks"][0]["blocks"]) == expected


async def test_load_reports_follow_changes_and_the_clock(start, zmq_context):
    client = await start(timing=SLOW)
    socket = zmq_context.socket(zmq.SUB)
    socket.connect(f"tcp://127.0.0.1:{client.worker.ports.load}")
    socket.subscribe(b"load")
    idle = await receive(socket)  # a heartbeat: nothing happens
    assert idle[2][:6] == ["LoadStat", 0, 0, 0, 4096, 0]
    async with client.stream(range(40), 1000) as reply:
        await reply.content.readline()
        while (await receive(socket))[2][1:4] != [1, 0, 64]:
            pass
    while (report := (await receive(socket))[2])[1] != 0:
        pass
    assert report[3] == 0
    assert len(report) == 11
    assert report[9] == 40


async def test_without_events_nothing_is_described(start):
    client = await start(kv_events_port=0, load_port=0)
    assert (await client.get("/server_info"))["kv_events"] is None
    assert client.worker.ports == Ports(client.worker.ports.http, 0, 0, 0)
    assert (await client.generate(range(40)))["meta_info"]["cached_tokens"] == 0
    assert (await client.generate(range(40)))["meta_info"]["cached_tokens"] == 32


# Abort, flush, what it says of itself


async def test_an_aborted_stream_ends_and_frees_the_engine(start):
    client = await start(timing=SLOW)
    async with client.stream(range(50), 3000, rid="victim") as reply:
        await reply.content.readline()
        assert (await client.load())["num_running_reqs"] == 1
        assert await client.post("/abort_request", {"rid": "victim"}) == (200, "")
        rest = (await reply.read()).strip().split(b"\n\n")
    assert rest[-1] == b"data: [DONE]"
    assert json.loads(rest[-2][6:])["meta_info"]["finish_reason"] == {
        "type": "abort",
        "message": "Aborted",
        "status_code": None,
        "err_type": None,
    }
    await client.idle()
    assert (await client.generate(range(50)))["meta_info"]["cached_tokens"] == 48


async def test_a_request_that_has_not_reached_the_scheduler_is_aborted_too(start):
    client = await start(timing=StepTiming(request_base_seconds=60.0))
    task = asyncio.create_task(client.generate(range(40), rid="early"))
    while not client.worker.ranks[0].holds("early"):
        await asyncio.sleep(0.005)
    assert (await client.post("/flush_cache"))[0] == 400
    await client.post("/abort_request", {"rid": "early"})
    assert (await task)["meta_info"]["finish_reason"]["type"] == "abort"
    assert client.worker.ranks[0].engine.statistics().requests == 0
    assert (await client.post("/flush_cache"))[0] == 200


async def test_a_short_prompt_does_not_overtake_a_long_one_at_the_door(start):
    client = await start(timing=StepTiming(request_token_seconds=1e-3))
    rank, order = client.worker.ranks[0], []
    submit = rank.engine.submit
    rank.engine.submit = lambda request, now: (order.append(request.rid), submit(request, now))
    long = asyncio.create_task(client.generate([1] * 400, 1, rid="long"))
    while not rank.holds("long"):
        await asyncio.sleep(0.005)
    await client.generate([2] * 20, 1, rid="short")
    await long
    assert order == ["long", "short"]


async def test_abort_all(start):
    client = await start(timing=SLOW)
    waiting = [asyncio.create_task(client.generate([i] * 20, 500)) for i in range(3)]
    await client.until(lambda load: load["num_running_reqs"] == 3)
    await client.post("/abort_request", {"abort_all": True})
    for task in waiting:
        assert (await task)["meta_info"]["finish_reason"]["type"] == "abort"
    await client.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(start, stream):
    client = await start(timing=SLOW)
    body = {"input_ids": list(range(50)), "sampling_params": {"max_new_tokens": 3000}, "stream": stream}
    task = asyncio.create_task(client.post("/generate", body))
    await client.until(lambda load: load["num_running_reqs"] == 1)
    task.cancel()
    await client.idle()
    assert client.worker.ranks[0].engine.statistics().aborted_requests == 1


async def test_flush_is_refused_while_busy_and_waits_if_asked(start):
    client = await start(timing=SLOW)
    task = asyncio.create_task(client.generate(range(40), 3000))
    await client.until(lambda load: load["num_running_reqs"] == 1)
    assert (await client.post("/flush_cache"))[0] == 400
    assert (await client.post("/flush_cache?timeout=0.01"))[0] == 400
    waiting = asyncio.create_task(client.post("/flush_cache?timeout=9"))
    await client.post("/abort_request", {"abort_all": True})
    assert (await waiting)[0] == 200
    assert (await task)["meta_info"]["finish_reason"]["type"] == "abort"
    assert (await client.generate(range(40)))["meta_info"]["cached_tokens"] == 0
    assert (await client.post("/flush_cache?timeout=x"))[0] == 400


async def test_probes_and_descriptions(start):
    client = await start(max_total_tokens=2048)
    for path in ("/ready", "/ping", "/health", "/health_generate"):
        assert await client.get(path) == ""
    assert (await client.load())["total_prefill_uncached_tokens"] == 2  # each of the two health routes generates
    assert (await client.get("/get_model_info"))["is_generation"] is True
    assert (await client.get("/get_server_info"))["max_req_input_len"] == 2042
    assert 'sglang_num_running_reqs{dp_rank="0"} 0' in await client.get("/v1/loads?format=prometheus")
    status, text = await client.post("/abort_request", [])
    assert (status, "object" in text) == (400, True)


async def test_descriptions_have_the_recorded_keys_and_types(start):
    client = await start(max_total_tokens=2048, dp_size=1)
    await client.generate(range(30))
    recorded = json.loads(capture_path("server_info.json").read_text())
    ours = await client.get("/server_info")
    assert set(ours) <= set(recorded)
    assert sorted(ours["kv_events"]) == sorted(recorded["kv_events"])
    assert set(ours["internal_states"][0]) <= set(recorded["internal_states"][0])
    different = {
        key for key in ours if None not in (ours[key], recorded[key]) and type(ours[key]) is not type(recorded[key])
    }
    assert different == set()
    load, recorded_load = await client.load(), json.loads(capture_path("v1_loads.json").read_text())["loads"][0]
    assert sorted(load) == sorted(recorded_load)
    assert {key: type(value) for key, value in load.items()} == {
        key: type(value) for key, value in recorded_load.items()
    }


async def test_metrics_have_recorded_names(start):
    client = await start()
    await client.generate(range(30))
    await client.events(range(30))
    names = {line.split("{")[0].split(" ")[0] for line in (await client.get("/metrics")).splitlines() if line[0] != "#"}
    ours = {name for name in names if name.startswith("sglang:") and not name.endswith("_created")}
    recorded = {line.split("{")[0].split(" ")[0] for line in capture_path("metrics.txt").read_text().splitlines()}
    assert ours
    assert ours <= recorded


# Faults


async def test_an_error_comes_before_the_first_token_or_in_the_stream(start):
    client = await start()
    await client.post("/_fault", {"kind": "error", "status": 503, "message": "no", "count": 2})
    assert await client.post("/generate", {"input_ids": [1]}) == (503, '{"error":{"message":"no"}}')
    assert (await client.post("/v1/completions", {"prompt": [1]}))[0] == 503
    await client.post("/_fault", {"kind": "error", "after_tokens": 2})
    events = await client.events(range(9), 5)
    assert [list(event) for event in events] == [["text", "output_ids", "meta_info"]] * 2 + [["error"]]
    assert len((await client.generate(range(9), 5))["output_ids"]) == 5  # used up
    assert (await client.get("/_fault"))["used"]["error"] == 3
    await client.idle()


@pytest.mark.parametrize("tokens", [0, 3])
async def test_a_cut_connection_has_no_ending(start, tokens):
    client = await start()
    await client.post("/_fault", {"kind": "cut", "after_tokens": tokens})
    with pytest.raises(aiohttp.ClientError):
        await client.events(range(9), 5)
    await client.idle()
    assert len(await client.events(range(9), 5)) == 5


async def test_a_hanging_stream_says_nothing_more(start):
    client = await start()
    await client.post("/_fault", {"kind": "hang", "after_tokens": 1})
    async with client.stream(range(9), 5) as reply:
        await reply.content.readuntil(b"\n\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reply.content.readline(), 0.1)
    await client.idle()


async def test_a_dead_worker_refuses_connections(start):
    client = await start()
    await client.post("/_fault", {"kind": "die", "after_tokens": 1})
    with pytest.raises(aiohttp.ClientError):
        await client.events(range(9), 5)
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get("/ready")


async def test_faults_are_checked_and_cleared(start):
    client = await start()
    status, text = await client.post("/_fault", {"kind": "quake"})
    assert (status, "quake" in text) == (400, True)
    await client.post("/_fault", {"kind": "error", "count": 5})
    async with client.session.delete(client.worker.url + "/_fault") as reply:
        assert json.loads(await reply.text())["armed"] == []
    await client.generate(range(9))


# Command line


async def command(*arguments):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sim.worker", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def test_the_command_says_ready_serves_and_stops():
    process = await command("--page-size", "1", "--dp-size", "2", "--speed", "50")
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    word, _, ports = line.partition(" ")
    assert word == "ready"
    assert set(json.loads(ports)) == {"http", "kv_events", "replay", "load", "bootstrap"}
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{json.loads(ports)['http']}"
        async with session.get(url + "/server_info") as reply:
            assert (await reply.json())["dp_size"] == 2
    process.send_signal(signal.SIGTERM)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--page-size", "0"], b"page_size"), (["--nonsense"], b"nonsense"), (["--version", "0.5.3"], b"version")],
)
async def test_bad_options_make_one_line(arguments, word):
    process = await command(*arguments)
    output, errors = await process.communicate()
    assert (process.returncode, output, errors.count(b"\n")) == (2, b"", 1)
    assert word in errors


@pytest.mark.parametrize(
    ("options", "word"),
    [({"dp_size": 0}, "dp_size"), ({"load_port": 70_000}, "load_port"), ({"context_length": 3}, "context_length")],
)
def test_bad_configs_name_the_field(options, word):
    with pytest.raises(ValueError, match=word):
        WorkerConfig(**options)


async def test_a_taken_port_is_said_and_nothing_is_left_open(start):
    client = await start()
    with pytest.raises(OSError, match=f"port {client.worker.ports.http}"):
        await FakeWorker(WorkerConfig(port=client.worker.ports.http)).start()
    with pytest.raises(OSError, match="free ports"):
        await FakeWorker(WorkerConfig(kv_events_port=client.worker.ports.kv_events)).start()
