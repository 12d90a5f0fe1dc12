"""Events as each SGLang version writes them, byte for byte."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from sim.engine import Cleared, Namespace, Removed, Stored
from sim.worker.wire import Dialect
from tests.sim.captures import capture_path

VERSIONS = ["0.5.6", "0.5.9", "0.5.10", "0.5.16", "0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.22", "0.5.23"]
TOKENS = np.array([1, 2, 3, 4], np.uint32)


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_are_those_of_the_version(version):
    golden = {entry["version"]: entry for entry in json.loads(capture_path("golden_by_version.json").read_text())}
    recorded = golden[version]["live_decoded"]
    # The recording publishes events of two pages in every version, however the version's own cache would have cut them.
    dialect = replace(Dialect.of(version), stores_joined=True, removals_joined=True)
    salted = [Stored([-5, 7], None, TOKENS, Namespace(None, "s"), "x")] if dialect.salt else []
    stores = [Stored([-5, 7], parent, TOKENS, Namespace()) for parent in (None, 7)]
    payload = dialect.encode([*stores, *salted, Removed([-5, 7]), Cleared()], 2, 1, 1.5)
    assert msgspec.msgpack.decode(payload) == recorded
    assert payload.hex() == golden[version]["live_frames_hex"][2]
    assert len(golden[version]["replay_frames_hex"][-1]) == (4 if dialect.replay_topic else 3)


def test_older_versions_cut_events_into_pages():
    change = Stored([11, 12], 5, TOKENS, Namespace())
    payload = Dialect.of("0.5.12").encode([change, Removed([11, 12])], 2, 0, 0.0)
    assert msgspec.msgpack.decode(payload)[1] == [
        ["BlockStored", [11], 5, [1, 2], 2, None, "GPU"],
        ["BlockStored", [12], 11, [3, 4], 2, None, "GPU"],
        ["BlockRemoved", [11], "GPU"],
        ["BlockRemoved", [12], "GPU"],
    ]


def test_the_form_can_be_forced():
    assert not Dialect.of("0.5.23", "array").maps
    assert Dialect.of("0.5.17", "map").maps


@pytest.mark.parametrize("version", ["", "latest", "0.5", "0.5.4", "0.4.9.post1"])
def test_versions_that_are_not_spoken(version):
    with pytest.raises(ValueError, match="version must"):
        Dialect.of(version)
