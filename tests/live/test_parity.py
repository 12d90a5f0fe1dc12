"""A router whose tokenizer is not the engine's refuses the worker, and says why, from the command lines on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import aiohttp
import pytest

from launch.stack import Stack
from sim import tinymodel
from tests.live.conftest import ROUTER_OPTIONS
from tests.live.test_stack import get, router, until

if TYPE_CHECKING:
    from pathlib import Path


def other_tokenizer(folder: Path) -> Path:
    """The tiny model's folder, with two of its words changed about."""
    shutil.copytree(tinymodel.PATH, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = [word for word in words if word in ("d", "f")]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.timeout(120)
async def test_another_tokenizer_is_refused_with_both_sides_tokens(tmp_path: Path) -> None:
    model = other_tokenizer(tmp_path / "model")
    async with Stack(tmp_path / "stack", workers=1) as stack, aiohttp.ClientSession() as session:
        await stack.route(*ROUTER_OPTIONS, "--min-workers", "0", "--model-path", str(model))

        async def refused() -> bool:
            workers = (await get(session, f"{router(stack)}/workers"))["workers"]
            return [worker for worker in workers if "its tokenizer makes" in worker.get("refused", "")] == workers != []

        await until(refused, "the worker was not refused")
        async with session.get(f"{router(stack)}/metrics") as reply:
            assert 'warmpath_parity_failures_total{kind="tokens"} 1.0' in await reply.text()
