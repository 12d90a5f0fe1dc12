"""The core decides; it does not read clocks, sockets or the wire."""

import ast
from pathlib import Path

import pytest

import router.core

ROOT = Path(router.core.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
FORBIDDEN = {"asyncio", "time", "socket", "aiohttp", "threading", "nats", "zmq"}
OF_EVENTS = {"events.blocks", "events.entry", "events.messages"}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module in {"events", "router"} else {module}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_io_and_no_clock(path: Path) -> None:
    names = imported(ast.parse(path.read_text()))
    assert not {name.split(".")[0] for name in names} & FORBIDDEN
    assert {name for name in names if name.split(".")[0] == "events"} <= OF_EVENTS
    ours = {name for name in names if name.split(".")[0] in {"router", "workers", "sim", "launch"}}
    assert all(name.startswith("router.core") for name in ours)


def test_the_walk_sees_every_form_of_import() -> None:
    code = "import asyncio.events\ndef f():\n    from time import monotonic\nfrom events import bus\nfrom events.stream import x"
    assert imported(ast.parse(code)) == {"asyncio.events", "time", "events.bus", "events.stream"}
    assert len(MODULES) > 10
