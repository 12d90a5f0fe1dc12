from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.frontend.stops import StopStrings

letters = st.text("ab", max_size=30)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Letter by letter: the first that completes a stop string ends the text; of several, the longest counts."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(letters, stop_lists, st.data())
def test_however_the_text_is_cut_the_result_is_the_same(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    machine = StopStrings(stops)
    pieces = [machine.push(text[start:end]) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown = "".join(pieces) + machine.finish()
    assert (shown, machine.matched) == oracle(text, stops)


@given(letters, stop_lists)
def test_nothing_is_held_back_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    machine = StopStrings(stops)
    shown = machine.push(text)
    if machine.matched is None:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stops_text_passes_at_once() -> None:
    machine = StopStrings([])
    assert machine.push("any") == "any"
    assert machine.finish() == ""


def test_after_a_match_nothing_more_comes() -> None:
    machine = StopStrings(["!"])
    assert machine.push("a!b") == "a"
    assert machine.push("c") + machine.finish() == ""
    assert repr(machine) == "StopStrings(['!'], held='', matched='!')"
