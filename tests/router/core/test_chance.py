from collections import Counter

from router.core.chance import Chance


def test_a_decision_has_the_same_numbers_whenever_it_is_asked() -> None:
    chance = Chance(5)
    first = [chance.of(3).random(), chance.random(), chance.randrange(100)]
    chance.of(4).random()
    assert [chance.of(3).random(), chance.random(), chance.randrange(100)] == first


def test_decisions_and_seeds_differ() -> None:
    drawn = {Chance(seed).of(decision).random() for seed in range(-20, 20) for decision in range(50)}
    assert len(drawn) == 40 * 50


def test_numbers_are_evenly_spread() -> None:
    chance = Chance(1)
    first = Counter(chance.of(decision).randrange(8) for decision in range(8000))
    later = Counter(int(chance.random() * 8) for _ in range(8000))
    for counts in (first, later):
        assert sorted(counts) == list(range(8))
        assert all(850 < count < 1150 for count in counts.values())


def test_bits_are_as_many_as_asked_for() -> None:
    chance = Chance(2)
    for bits in (1, 7, 63, 64, 65, 200):
        drawn = [chance.getrandbits(bits) for _ in range(200)]
        assert max(drawn).bit_length() == bits
        assert any(number % 2 for number in drawn)
        assert not all(number % 2 for number in drawn)


def test_it_samples_and_shuffles() -> None:
    chance = Chance(3)
    assert len(set(chance.sample(range(10), 4))) == 4
    items = list(range(50))
    chance.shuffle(items)
    assert items != sorted(items)
    assert sorted(items) == list(range(50))
