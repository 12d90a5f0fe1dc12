"""The randomness of a decision."""

from __future__ import annotations

from random import Random

_WORD = 0xFFFF_FFFF_FFFF_FFFF
_STEP = 0x9E37_79B9_7F4A_7C15
_DECISION = 0xD1B5_4A32_D192_ED03


class Chance(Random):
    """Random numbers that depend on the seed and the decision's number alone, however often it is explained.

    Python's own generator takes longer to seed than a whole decision; this is SplitMix64, of which the state is one word. Source:
    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.

    >>> first, again = Chance(1), Chance(1)
    >>> first.of(7).random() == again.of(7).random()
    True
    """

    def __init__(self, seed: int) -> None:
        self._origin = _mixed(seed & _WORD)
        self._decision: int | None = 0
        self._state = 0
        super().__init__(seed)

    def of(self, decision: int) -> Chance:
        """Begin the numbers of a decision. O(1)."""
        self._decision = decision
        return self

    def random(self) -> float:
        """A float in [0, 1), of 53 bits."""
        return (self._next() >> 11) * 2.0**-53

    def getrandbits(self, k: int, /) -> int:
        """An integer of k bits."""
        bits = 0
        for _ in range(0, k, 64):
            bits = bits << 64 | self._next()
        return bits >> -k % 64

    def _next(self) -> int:
        if self._decision is not None:  # most decisions draw nothing
            self._state = _mixed((self._origin + _DECISION * self._decision) & _WORD)
            self._decision = None
        self._state = (self._state + _STEP) & _WORD
        return _mixed(self._state)


def _mixed(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D0_49BB_1331_11EB & _WORD
    return word ^ word >> 31
