"""The probe: what an engine's events must prove before routers may trust them, and how each failure reads."""

from __future__ import annotations

import logging

import pytest

from events.membership import Role
from events.parity import TEXT, hash_vector
from workers.sglang import probe
from workers.sglang.card import Chosen, describe
from workers.sglang.probe import probe_tokens

from .fake_sglang import FakeServer, stored
from .test_sglang_adapter import BLOCK, Outside


async def honest(rank, tokens, shift=0, page_size=16):
    """Whole pages of the prompt, as an engine publishes them."""
    pages = len(tokens) // page_size
    ids = [rank.seq * 1000 + page for page in range(pages)]
    if pages:
        await rank.publish(
            stored(ids, None, [token + shift for token in tokens[: pages * page_size]], page_size=page_size)
        )


async def joined(server, stores, **options):
    """The card that an adapter registers."""
    server.stores = stores
    async with Outside(server, parity_probe=True, **options) as outside:
        return await outside.registered(), outside


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(probe, "EVENT_SECONDS", 0.1)


@pytest.mark.parametrize("ranks", [1, 3])
async def test_events_that_are_the_prompts_prove_themselves(ranks):
    async with FakeServer(ranks=ranks) as server:
        card, outside = await joined(server, honest)
        assert card.parity_failure is None
        assert card.hash_vector == hash_vector(BLOCK)
        assert card.text_tokens == (len(TEXT),)
        assert outside.events == []  # nobody followed the rank yet
        prompts = [body["input_ids"] for body in server.probed if len(body["input_ids"]) > 1]
        assert len(prompts) == ranks
        assert {len(prompt) for prompt in prompts} == {BLOCK + 1}
        assert len({tuple(prompt) for prompt in prompts}) == ranks


async def silent(rank, tokens):
    """Nothing is published."""


async def other_tokens(rank, tokens):
    await honest(rank, tokens, shift=1)


async def other_pages(rank, tokens):
    await honest(rank, tokens, page_size=32)


@pytest.mark.parametrize(
    ("stores", "reason"),
    [
        (silent, "no event came within 0.1 s: see the endpoint in its --kv-events-config"),
        (other_tokens, "1 events came, but of other tokens"),
        (other_pages, "pages of 32 tokens, and it says that its pages have 16"),
    ],
    ids=["silent", "other tokens", "other pages"],
)
async def test_events_that_are_not_are_told_to_routers(stores, reason, caplog):
    async with FakeServer() as server:
        card, _ = await joined(server, stores)
        assert reason in card.parity_failure
    assert any(reason in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)


async def test_one_rank_of_several_is_enough_to_fail():
    async def only_the_first(rank, tokens):
        if rank.rank == 0:
            await honest(rank, tokens)

    async with FakeServer(ranks=2) as server:
        card, _ = await joined(server, only_the_first)
        assert "rank 1" in card.parity_failure


async def test_an_engine_that_refuses_the_probe_is_registered_unproven(caplog):
    async def refuse(rank, tokens):
        if len(tokens) > 1:
            server.silent_ranks = {0}

    async with FakeServer() as server:
        server.silent_ranks = set()
        server.stores = refuse
        server.tokenizes = False
        async with Outside(server, parity_probe=True) as outside:
            card = await outside.registered()
        assert card.parity_failure is None
        assert card.text_tokens == ()


async def test_switched_off_it_sends_nothing():
    async with FakeServer() as server, Outside(server, parity_probe=False) as outside:
        card = await outside.registered()
        assert (card.hash_vector, card.text_tokens) == ((), ())
        assert all(len(body["input_ids"]) == 1 for body in server.probed)


async def test_without_events_there_is_nothing_to_prove():
    async with FakeServer(events=False) as server:
        card, _ = await joined(server, silent)
        assert card.parity_failure is None


@pytest.mark.parametrize(
    ("page_size", "block_size", "length"), [(1, 64, 65), (16, 64, 65), (48, 64, 97), (128, 64, 129)]
)
def test_the_prompt_fills_a_block_with_whole_pages(page_size, block_size, length):
    card = describe(
        {"max_total_num_tokens": 1, "page_size": page_size}, Chosen("http://h:1", "h:1", block_size), 5
    ).card
    assert len(probe_tokens(card, 0)) == length
    assert probe_tokens(card, 0) == probe_tokens(card, 0) != probe_tokens(card, 1)
    assert card.role is Role.AGGREGATED
