"""The engine model replays the recorded scenario of a real SGLang 0.5.23 (page 16, pool 2048, chunk 512).

Compared step by step: cached tokens, every event (kind, ids, parent, tokens, salt, session) in order, and every load report.
What differs, and why:

* The real model's output tokens are fed to ours, for ours would say something else; ids of generated pages depend on them.
* `over_capacity`: SGLang computes one token in the place of the refused request, and counts it; the model refuses at once.
* The aborted and the disconnected request end at a time the recording does not tell in steps; their output stays inside a page.
* The chat request is taken from its recorded events, for its prompt's last tokens are in no event: they fill no page.
"""

import numpy as np
import pytest

from sim.engine import Cleared, Engine, EngineConfig, Namespace, Removed, Request, StepKind, Stored
from tests.sim.captures import capture_steps


class Scripted:
    """A sampler that says what was recorded."""

    def __init__(self):
        self.script = []

    def read(self, tokens):
        return 0

    def next(self, state):
        return self.script[state]

    def append(self, state, token):
        return state + 1


def tokens(first, count):
    return list(range(first, first + count))


def spread(index, count):
    return [(index * 331 + k * 7) % 1900 + 50 for k in range(count)]


PROMPT = tokens(100, 40)
PLAIN = Namespace()
PROMPTS = {
    "cold_40tok_gen8": (PROMPT, PLAIN, None),
    "repeat_same": (PROMPT, PLAIN, None),
    "diverge_at_20": (PROMPT[:20] + tokens(300, 20), PLAIN, None),
    "diverge_at_page2(32)": (PROMPT[:32] + tokens(400, 32), PLAIN, None),
    "extend_long_96": (PROMPT[:32] + tokens(400, 32) + tokens(500, 32), PLAIN, None),
    "short_10tok_gen2": (tokens(700, 10), PLAIN, None),
    "exact_32_prompt_gen1": (tokens(800, 32), PLAIN, None),
    "exact_32_prompt_gen1_again": (tokens(800, 32), PLAIN, None),
    "extra_key_a": (PROMPT, Namespace("tenantA"), None),
    "extra_key_b": (PROMPT, Namespace("tenantB"), None),
    "cache_salt": (PROMPT, Namespace(None, "saltX"), None),
    "session_id": (tokens(900, 40), PLAIN, "sess-1"),
    "priority_gen40": (tokens(1000, 20), PLAIN, None),
    **{f"fill_{i}_400tok": (spread(i, 400), PLAIN, None) for i in range(6)},
    "reuse_fill_5": (spread(5, 400), PLAIN, None),
    "reuse_fill_0(evicted)": (spread(0, 400), PLAIN, None),
    "chunked_1500tok": ([(k * 11) % 1900 + 50 for k in range(1500)], PLAIN, None),
    "stream_then_abort": (tokens(60, 50), PLAIN, None),
    "stream_client_disconnect": (tokens(60, 50) + tokens(1500, 30), PLAIN, None),
}
ENDED_BY_CLIENT = {"stream_then_abort": 6, "stream_client_disconnect": 6}


def as_event(change):
    """A change in the shape of SGLang's decoded event."""
    match change:
        case Stored(ids, parent, page_tokens, namespace, session):
            extra = {"cache_salt": namespace.cache_salt, "session_id": session}
            return {
                "type": "BlockStored",
                "block_hashes": ids,
                "parent_block_hash": parent,
                "token_ids": page_tokens.tolist(),
                "block_size": 16,
                "lora_id": None,
                "medium": "GPU",
                **{key: value for key, value in extra.items() if value is not None},
            }
        case Removed(ids):
            return {"type": "BlockRemoved", "block_hashes": ids, "medium": "GPU"}
        case Cleared():
            return {"type": "AllBlocksCleared"}


def as_report(load):
    return [
        load.running_requests,
        load.waiting_requests,
        load.used_tokens,
        load.capacity_tokens,
        load.waiting_uncached_tokens,
        load.total_tokens,
        load.max_running_requests,
        load.total_prefill_uncached_tokens,
    ]


class Replica:
    """Our engine, set up as the recorded one."""

    def __init__(self):
        self.engine = Engine(EngineConfig(capacity_tokens=2048, chunked_prefill_tokens=512, context_length=4096))
        self.engine._sampler = self.sampler = Scripted()
        self.engine.step(0)

    def generate(self, label, recorded):
        prompt, namespace, session = PROMPTS[label]
        ended = ENDED_BY_CLIENT.get(label)
        # A stream's text is in the recording, its later ids are not; no page is filled, so their values do not matter.
        output = [7] * 500 if ended else recorded["output_ids"]
        self.sampler.script = output
        request = Request(label, np.array(prompt, np.uint32), len(output), namespace=namespace, session_id=session)
        self.engine.submit(request, 0)
        return self.drain(abort_after=ended)

    def chat(self, frames):
        """The prompt as its stored pages tell, padded to the recorded length; what was generated likewise."""
        stored = [event for frame in frames for event in frame["decoded"][1]]
        known = stored[0]["token_ids"] + stored[1]["token_ids"]
        prompt, output = known[:77], known[77:]
        self.sampler.script = [*output, *[7] * (8 - len(output))]
        self.engine.submit(Request("chat", np.array(prompt, np.uint32), 8), 0)
        return self.drain()

    def drain(self, abort_after=None):
        frames, loads, cached, count = [], [], None, 0
        while True:
            step = self.engine.step(0)
            self.engine._check()
            frames += [[as_event(change) for change in step.cache_changes]] if step.cache_changes else []
            loads += [as_report(step.load)] if step.load else []
            for output in step.outputs:
                cached, count = output.cached_tokens, count + (output.token is not None)
            if abort_after and count == abort_after:
                self.engine.abort(step.outputs[0].rid)
            if step.kind is StepKind.IDLE:
                return cached, frames, loads


@pytest.fixture(scope="module")
def recorded():
    return capture_steps("basic_p16.jsonl")


def kv_frames(step):
    return [frame for frame in step["frames"] if frame["sock"].startswith("kv")]


def load_reports(step, stand_in_tokens):
    reports = [frame["decoded"] for frame in step["frames"] if frame["sock"].startswith("load")]
    return [[*report[1:5], *report[6:9], report[9] - stand_in_tokens] for report in reports]


def test_the_recorded_scenario(recorded):
    replica = Replica()
    compared = 0
    for label, step in recorded.items():
        frames = kv_frames(step)
        events = [frame["decoded"][1] for frame in frames]
        if label.startswith("flush"):
            assert replica.engine.flush()
            assert replica.drain()[1] == events, label
        elif label == "openai_chat":
            assert replica.chat(frames)[1:] == (events, load_reports(step, 0))
        elif label in PROMPTS:
            cached, ours, loads = replica.generate(label, step["result"])
            assert ours == events, label
            assert loads == load_reports(step, stand_in_tokens=label in ENDED_BY_CLIENT), label
            if label not in ENDED_BY_CLIENT:
                assert cached == step["result"]["cached_tokens"], label
        else:
            continue
        compared += 1
    assert compared == len(PROMPTS) + 3
