"""Validation: a run that the model itself made is met exactly; what differs is told; and the real recordings."""

import gzip
import json

import numpy as np
import pytest

from sim import __main__ as command
from sim.engine import StepTiming
from sim.engine.timing import profile
from sim.recordings.run import About, RecordedRequest, Run, read_run
from sim.traces import Trace, mooncake
from sim.validate.comparison import compare
from sim.validate.playback import Played, play
from sim.validate.texts import OUTPUT_IDS, Texts
from tests.sim.captures import SHARED, recording

RUNS = ("conv262_rr", "conv524_rr", "conv524_sticky", "d4_rr")


def trace_lines(requests=40):
    random = np.random.default_rng(3)
    for number in range(requests):
        length = int(random.integers(100, 4000))
        ids = [0, *random.integers(1, 6, 3).tolist(), *range(100 * number + 10, 100 * number + 20)]
        yield {
            "timestamp": number * 40,
            "input_length": length,
            "output_length": int(random.integers(1, 40)),
            "hash_ids": ids[: -(-length // 512)],
        }


@pytest.fixture
def made(tmp_path):
    """A recording in the model's own hand: folder, and the timing model that made it."""
    timing = StepTiming(prefill_token_seconds=5e-5)
    lines = list(trace_lines())
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = About("trace.jsonl", [20_000, 12_000], 16, "0.5.17", 100.0, "made")
    asked = [
        RecordedRequest(n, n % 2, line["input_length"], line["output_length"], line["timestamp"] / 1000, n * 0.04)
        for n, line in enumerate(lines)
    ]
    played = play(Run("made", about, asked), mooncake.read(tmp_path / "trace.jsonl"), timing)
    folder = tmp_path / "made"
    folder.mkdir()
    with gzip.open(folder / "requests.jsonl.gz", "wt") as file:
        file.write(json.dumps({"k": "meta", **{name: getattr(about, name) for name in About.__struct_fields__}}) + "\n")
        for request, result in zip(asked, played, strict=True):
            file.write(json.dumps(line_of(request, result)) + "\n")
    return folder, timing


def line_of(request, result):
    times = [[1000 * second, count] for count, second in enumerate(result.token_seconds.tolist(), 1)]
    return {
        "idx": request.row,
        "w": request.worker,
        "in": request.input_tokens,
        "out": request.output_tokens,
        "at": request.planned_at,
        "t_send": request.sent_at,
        "ttft_ms": times[0][0],
        "times": times,
        "n_out": len(times),
        "cached_tokens": result.cached_tokens,
    }


def profile_file(path, timing):
    profile.Profile("made", timing, "made up").save(path)
    return str(path)


def test_a_run_of_the_models_own_is_met_exactly(made, tmp_path, capsys):
    folder, timing = made
    options = ["--profile", profile_file(tmp_path / "p.json", timing), "--json", str(tmp_path / "out.json")]
    assert command.main(["validate", str(folder), *options]) == 0
    assert "all goals reached" in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert (run["requests"], run["missing"], run["equal_cached_share"], run["misses"]) == (40, 0, 1.0, [])
    assert run["figures"]["cached_tokens"]["recorded"] > 10_000
    for name, figure in run["figures"].items():
        assert figure["played"] == pytest.approx(figure["recorded"], rel=1e-9), name


def test_another_engine_misses_its_goals_and_says_so(made, tmp_path, capsys):
    folder, _ = made
    slow = profile_file(tmp_path / "slow.json", StepTiming(prefill_token_seconds=8e-5))
    assert command.main(["validate", str(folder), "--profile", slow]) == 1
    said = capsys.readouterr().out
    assert "missed: made: ttft_p50_seconds +" in said
    assert "missed: made: gap_mean_seconds +" in said


def test_what_was_given_up_is_not_compared():
    request = RecordedRequest(0, 0, 10, 3, 0.0, 0.0, 100.0, [(100.0, 1), (200.0, 3)], 3, 5)
    lost = RecordedRequest(1, 0, 10, 3, 0.5)
    cut = RecordedRequest(2, 0, 10, 3, 0.5, 0.5, 100.0, [(100.0, 1)], 1, None)
    played = [Played(5, np.array([0.11, 0.2, 0.25]), True), Played(0, np.array([9.0]), False), None]
    result = compare("run", [request, lost, cut], played)
    assert (result.requests, result.missing, result.equal_cached_share) == (2, 1, 1.0)
    assert result.figures["ttft_mean_seconds"] == pytest.approx((0.1, 0.11))
    assert result.figures["gap_mean_seconds"] == pytest.approx((0.05, 0.07))
    assert request.token_seconds().tolist() == [0.1, 0.2, 0.2]


def test_equal_ids_are_equal_tokens_and_what_has_none_is_its_own():
    trace = Trace.open_loop(
        "t",
        np.zeros(3),
        np.array([10, 10, 20]),
        np.ones(3),
        block_tokens=8,
        blocks=np.array([2**60, 5, 2**60, 6], np.uint64),
        first_block=np.array([0, 2, 4, 4]),
    )
    texts = Texts(trace)
    one, two, three, again = (texts.prompt(*wanted) for wanted in ((0, 10), (1, 10), (2, 20), (2, 20)))
    assert (one[:8] == two[:8]).all()
    assert not set(one[8:]) & set(two[8:])
    everything = np.concatenate([one, two[8:], three, again])
    assert len(set(everything.tolist())) == len(everything)
    assert everything.max() < OUTPUT_IDS.min()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "requests.jsonl.gz").unlink(), "no requests.jsonl[.gz]"),
        (
            lambda folder: (folder / "requests.jsonl.gz").write_bytes(b"{}"),
            "line 1: Object missing required field",
        ),
        (lambda folder: (folder.parent / "trace.jsonl").unlink(), "its trace trace.jsonl is not in"),
        (lambda folder: rewrite(folder, "w", 7), "worker 7 has no pool"),
        (lambda folder: rewrite(folder, "in", "x"), "line 2: Expected `int`, got `str` - at `$.in`"),
        (lambda folder: rewrite(folder, "in", 30_000), "Input length (30000 tokens) exceeds"),
    ],
)
def test_a_bad_recording_makes_one_line(made, capsys, change, message):
    folder, _ = made
    change(folder)
    with pytest.raises(SystemExit) as ended:
        command.main(["validate", str(folder)])
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


def rewrite(folder, field, value):
    path = folder / "requests.jsonl.gz"
    about, first, *rest = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(b"\n".join([about, json.dumps(json.loads(first) | {field: value}).encode(), *rest])))


@pytest.mark.parametrize("name", RUNS)
def test_a_real_fleet_is_met_within_the_goals(name):
    run = read_run(recording("runs", name))
    place = SHARED / "traces" / run.about.trace
    trace = mooncake.read(place if place.exists() else recording("runs", run.about.trace))
    result = compare(name, run.requests, play(run, trace, profile.load(profile.DEFAULT).timing))
    assert result.misses == []
    assert result.missing == 0
