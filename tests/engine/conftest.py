"""Engines and the stack over them, shared by the tests here."""

from __future__ import annotations

import pytest

from tests.engine.install import installed, unsupported


@pytest.fixture(autouse=True, scope="session")
def _engine_is_installed() -> None:
    if reason := unsupported():
        pytest.skip(reason)
    if not installed():
        pytest.skip("no engine here: `make test-engine` installs one")
