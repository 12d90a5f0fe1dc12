import pytest

from router.core.columns import Columns
from router.core.fleet import Fleet
from router.core.request import Target


def add(fleet: Fleet, name: str, model: str = "m") -> int:
    return fleet.add(Target(name), capacity_blocks=10, model=model, page_size=1, exact=True, max_running_requests=None)


def test_a_slot_is_reused_lowest_first() -> None:
    fleet = Fleet()
    assert [add(fleet, name) for name in "abc"] == [0, 1, 2]
    fleet.remove(Target("b"))
    fleet.remove(Target("a"))
    fleet._check()
    assert [add(fleet, name) for name in "def"] == [0, 1, 3]
    fleet._check()
    assert (len(fleet), fleet.slots) == (4, 4)
    assert repr(fleet) == "Fleet(d/0, e/0, c/0, f/0)"


def test_a_new_owner_inherits_nothing() -> None:
    fleet = Fleet()
    add(fleet, "a", model="x")
    fleet.columns["available"][0] = False
    fleet.columns["last_placed"][0] = 7
    fleet.remove(Target("a"))
    add(fleet, "b", model="y")
    assert (fleet.columns["available"][0], fleet.columns["last_placed"][0]) == (True, -1)
    assert fleet.model_name(0) == "y"


def test_a_target_has_one_slot() -> None:
    fleet = Fleet()
    add(fleet, "a")
    with pytest.raises(ValueError, match="a/0 is there already"):
        add(fleet, "a")
    with pytest.raises(KeyError):
        fleet.remove(Target("b"))
    with pytest.raises(KeyError):
        fleet.target(5)


def test_columns_keep_their_rows_as_they_grow() -> None:
    columns = Columns(tokens=int, seconds=float)
    for slot in range(100):
        columns.reserve(slot + 1)
        columns["tokens"][slot] = slot
    assert columns["tokens"].tolist() == list(range(100))
    columns.reset(5)
    assert columns["tokens"][5] == 0
    columns.reserve(3)
    assert columns.slots == 100
    with pytest.raises(KeyError):
        columns["wrong"]
    assert repr(columns) == "Columns(tokens, seconds; 100 slots)"
