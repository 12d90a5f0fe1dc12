"""Rooms never meet, and belong to the rank."""

from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.rooms import STRIDE, Rooms


@given(
    st.integers(0, 2**27 - 1),
    st.lists(st.integers(1, 512).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))),
)
def test_rooms_are_the_ranks_and_apart(owner: int, asked: list[tuple[int, int]]) -> None:
    rooms = Rooms(owner)
    taken = [rooms.take(rank, ranks) for rank, ranks in asked]
    assert all(0 <= room < 2**63 - STRIDE // 2 for room in taken)
    assert all(room % ranks == rank for room, (rank, ranks) in zip(taken, asked, strict=True))
    assert len({room // STRIDE for room in taken}) == len(taken)  # and the ones after it are its own


def test_two_processes_draw_their_own() -> None:
    assert Rooms().take(0, 1) != Rooms().take(0, 1)
