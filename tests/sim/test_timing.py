"""Timing models: what they say, that the kernels say the same, and how profiles are read."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine import PolynomialTiming, StepTiming, TableTiming
from sim.engine.timing import kernels, profile

TABLE = TableTiming(
    prefill_new_tokens=(1, 100, 1000),
    prefill_prefix_tokens=(0, 500),
    prefill_table_seconds=((0.01, 0.02), (0.02, 0.03), (0.2, 0.4)),
    decode_sequences=(1, 11),
    decode_context_tokens=(100, 200),
    decode_table_seconds=((0.005, 0.006), (0.015, 0.018)),
    request_base_seconds=0.5,
    request_token_seconds=0.001,
)
MODELS = [StepTiming(), PolynomialTiming(request_base_seconds=0.1), TABLE, replace(TABLE, speed=3.0)]


def test_step_grows_with_each_of_its_terms():
    zero = dict.fromkeys(StepTiming.__dataclass_fields__, 0.0) | {"speed": 1.0}

    def only(**fields):
        return StepTiming(**(zero | fields))

    new, prefix = [100, 20], [50, 0]
    assert only(prefill_base_seconds=1).prefill_seconds(new, prefix) == 1
    assert only(prefill_token_seconds=1).prefill_seconds(new, prefix) == 120
    assert only(prefill_pair_seconds=1).prefill_seconds(new, prefix) == 100 * 100 + 20 * 10
    assert only(prefill_sequence_seconds=1).prefill_seconds(new, prefix) == 2
    assert only(prefill_context_seconds=1).prefill_seconds(new, prefix) == 170
    assert only(prefill_token_seconds=1, prefill_graph_tokens=8192).prefill_seconds(new, prefix) == 128
    assert only(prefill_floor_seconds=3, prefill_base_seconds=1).prefill_seconds(new, prefix) == 3
    assert only(decode_base_seconds=1).decode_seconds(7, 1000, 2000) == 1
    assert only(decode_sequence_seconds=1).decode_seconds(7, 1000, 2000) == 7
    assert only(decode_kv_token_seconds=1).decode_seconds(7, 1000, 2000) == 1000
    assert only(request_base_seconds=1, request_token_seconds=2).request_seconds(10) == 21


@pytest.mark.parametrize(
    ("new", "padded"),
    [
        (1, 4),
        (4, 4),
        (33, 48),
        (257, 288),
        (513, 576),
        (1025, 1280),
        (4096, 4096),
        (4097, 4608),
        (5371, 5632),
        (8193, 8193),
    ],
)
def test_a_prefill_is_padded_to_the_next_captured_graph(new, padded):
    assert kernels.padded_tokens(new, 8192) == padded
    assert kernels.padded_tokens(new, 0) == new


def test_there_are_as_many_captured_sizes_as_in_sglang():
    assert len({kernels.padded_tokens(new, 8192) for new in range(1, 8193)}) == 58


def test_polynomial_is_the_rivals_formula():
    timing = PolynomialTiming()
    assert timing.prefill_seconds([600, 400], [0, 9999]) == pytest.approx((0.4209989 + 15.18344 + 16.50142) / 1000)
    assert timing.decode_seconds(3, 500, 1000) == pytest.approx((-25.74 / 4 + 54.01 / 2 + 5.74) / 1000)
    assert timing.decode_seconds(3, 0, 1000) == pytest.approx(5.74e-3)
    assert timing.request_seconds(1000) == 0


def test_table_interpolates_and_goes_on_beyond_its_ends():
    assert TABLE.prefill_seconds([100], [500]) == pytest.approx(0.03)
    assert TABLE.prefill_seconds([550], [250]) == pytest.approx((0.02 + 0.03 + 0.2 + 0.4) / 4)
    assert TABLE.prefill_seconds([1000], [1000]) == pytest.approx(0.6)
    assert TABLE.prefill_seconds([1900], [0]) == pytest.approx(0.38)
    assert TABLE.prefill_seconds([1], [0]) == pytest.approx(0.01)
    assert TABLE.decode_seconds(6, 6 * 150, 9999) == pytest.approx((0.005 + 0.006 + 0.015 + 0.018) / 4)
    assert TABLE.decode_seconds(1, 1, 9999) == 0.005  # not below the smallest that was seen
    # Two prompts of 500 do half the attention of one with 1000 tokens: as if 250 tokens were in front of it already, less.
    assert TABLE.prefill_seconds([500, 500], [0, 0]) == pytest.approx(0.2 - 0.2 * 250 / 500)
    assert TABLE.request_seconds(100) == pytest.approx(0.6)


@pytest.mark.parametrize("timing", MODELS, ids=lambda timing: type(timing).__name__)
@given(
    new=st.lists(st.integers(1, 8192), min_size=1, max_size=5),
    prefix=st.integers(0, 100_000),
    speed=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_compiled_formulas_are_those_of_the_interpreter(timing, new, prefix, speed):
    timing = replace(timing, speed=speed)
    kind, numbers = timing.parameters()
    pairs = sum(n * (prefix + n / 2) for n in new)
    context = sum(new) + prefix * len(new)
    count = len(new)
    assert kernels.prefill_seconds.py_func(kind, numbers, sum(new), pairs, context, count) == timing.prefill_seconds(
        new, [prefix] * count
    )
    assert kernels.decode_seconds.py_func(kind, numbers, count, context, 300_000) == timing.decode_seconds(
        count, context, 300_000
    )
    assert kernels.request_seconds.py_func(kind, numbers, prefix) == timing.request_seconds(prefix)


@pytest.mark.parametrize("timing", MODELS[:3], ids=lambda timing: type(timing).__name__)
def test_speed_divides_all_times(timing):
    twice = replace(timing, speed=2.0)
    assert twice.prefill_seconds([500], [70]) == pytest.approx(timing.prefill_seconds([500], [70]) / 2)
    assert twice.decode_seconds(4, 800, 1000) == pytest.approx(timing.decode_seconds(4, 800, 1000) / 2)
    assert twice.request_seconds(10) == pytest.approx(timing.request_seconds(10) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepTiming(speed=0), "speed must be positive"),
        (lambda: StepTiming(decode_base_seconds=-1), "decode_base_seconds must be at least 0, not -1"),
        (lambda: StepTiming(prefill_pair_seconds=math.nan), "prefill_pair_seconds"),
        (lambda: PolynomialTiming(speed=-1), "speed"),
        (lambda: PolynomialTiming(request_base_seconds=-1), "request_base_seconds"),
        (lambda: replace(TABLE, speed=0), "speed"),
        (lambda: replace(TABLE, decode_sequences=(2, 1)), "decode_sequences must ascend"),
        (lambda: replace(TABLE, decode_sequences=()), "decode_sequences must ascend and have a point"),
        (lambda: replace(TABLE, decode_table_seconds=((1.0,),)), "decode_table_seconds must have 2 rows of 2 values"),
        (lambda: replace(TABLE, request_token_seconds=-1), "request_token_seconds"),
    ],
)
def test_nonsense_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("timing", MODELS, ids=lambda timing: type(timing).__name__)
def test_a_profile_is_read_as_it_was_written(tmp_path, timing):
    written = profile.Profile("mine", timing, "made up", {"gpu": "none"}, {"rows": 3})
    written.save(tmp_path / "mine.json")
    read = profile.load(tmp_path / "mine.json")
    assert read == written
    assert read.timing.prefill_seconds([700], [30]) == timing.prefill_seconds([700], [30])


def test_the_projects_profiles_load_and_tell_their_origin():
    assert profile.names() == ["h200-llama-8b", "polynomial"]
    for name in profile.names():
        assert profile.load(name).origin
    # 17 ms for 256 sequences of 1k, 217 ms for 8k new tokens: what was measured
    timing = profile.load(profile.DEFAULT).timing
    assert timing.decode_seconds(256, 256 * 1100, 879_248) == pytest.approx(17.2e-3, rel=0.05)
    assert timing.prefill_seconds([8192], [0]) + timing.request_seconds(8192) == pytest.approx(0.217, rel=0.05)
    assert profile.load(profile.DEFAULT).at_speed(4).timing.speed == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated"),
        ('{"timing": "step", "parameters": {}}', "origin"),
        ('{"timing": "steps", "origin": "", "parameters": {}}', "one of step, polynomial, table, not 'steps'"),
        ('{"timing": "step", "origin": "", "parameters": {"a": 1}}', "a step model has no parameter a"),
        (
            '{"timing": "step", "origin": "", "parameters": {"speed": "x"}}',
            r"Expected `float`, got `str` - at `\$.speed`",
        ),
        ('{"timing": "step", "origin": "", "parameters": {"speed": 0}}', "speed must be positive"),
        ('{"timing": "table", "origin": "", "parameters": {}}', "prefill_new_tokens"),
        (json.dumps({"timing": "step", "origin": "", "parameters": {}, "note": ""}), "note"),
    ],
)
def test_a_bad_profile_says_what_is_wrong_and_where(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        profile.load(path)
    assert str(path) in str(caught.value)


def test_an_unknown_profile_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'nope' is neither a file nor one of h200-llama-8b, polynomial"):
        profile.load("nope")
