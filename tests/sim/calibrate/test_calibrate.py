"""Fitting: known coefficients come back, from step logs and from a live fake worker; bad input is told by name."""

import asyncio
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.command import UsageError
from sim import __main__ as command
from sim.calibrate.client import Answer
from sim.calibrate.command import calibrate
from sim.calibrate.fit import non_negative, quality
from sim.calibrate.live import Measurement, Plan, fit_live, together
from sim.engine import Engine, EngineConfig, FrontDoor, Request, StepTiming
from sim.engine.timing import profile
from sim.worker import FakeWorker, WorkerConfig
from tests.sim.captures import recording

KNOWN = StepTiming(
    prefill_floor_seconds=0.004,
    prefill_base_seconds=0.002,
    prefill_token_seconds=3e-5,
    prefill_pair_seconds=2e-9,
    prefill_sequence_seconds=1e-4,
    prefill_context_seconds=1e-7,
    decode_base_seconds=0.008,
    decode_sequence_seconds=1e-4,
    decode_kv_token_seconds=5e-8,
    request_base_seconds=0.005,
    request_token_seconds=1e-6,
)


def step_lines(timing, *, slow_after_rest=1.0):
    """A log of prefill bursts and decodes; a prefill that follows no prefill takes another time."""
    random = np.random.default_rng(1)
    clock, previous = 0.0, "D"
    for number in range(400):
        kind = "E" if number % 4 else "D"
        line = {"m": kind, "tl": clock, "td": 0.5}
        if kind == "E":
            count = int(random.integers(1, 5))
            line["ext"] = random.integers(1, 3000, count).tolist()
            line["pre"] = random.integers(0, 20_000, count).tolist()
            seconds = timing.prefill_seconds(line["ext"], line["pre"]) * (1.0 if previous == "E" else slow_after_rest)
        else:
            line["bs"] = int(random.integers(1, 100))
            line["kv"] = line["bs"] * int(random.integers(100, 20_000))
            seconds = timing.decode_seconds(line["bs"], line["kv"], 1)
        line["g"] = seconds * 1000
        yield line
        clock, previous = clock + 0.4, kind
    for small in range(60):  # alone: the floor
        seconds = timing.prefill_seconds([1 + small], [0])
        yield {"m": "E", "tl": clock + 2 * small, "td": 0.1, "ext": [1 + small], "pre": [0], "g": seconds * 1000}


def probe_lines(timing, steps):
    for step in steps[-60:]:
        outside = timing.request_seconds(step["ext"][0])
        ttft = outside * 1000 + step["g"]
        yield {"k": "ttft", "n": step["ext"][0], "c": 0, "t_send": step["tl"] - 0.001, "ttft_ms": ttft}
    yield {"k": "info", "pool": 3}


def write(path, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def test_a_step_log_gives_its_model_back(tmp_path, capsys):
    lines = list(step_lines(KNOWN, slow_after_rest=1.3))
    steps, probes = (
        write(tmp_path / "steps.jsonl.gz", lines),
        write(tmp_path / "probes.jsonl", probe_lines(KNOWN, lines)),
    )
    out = str(tmp_path / "mine.json")
    # The probes are the last steps here, and what is before the first is the warm-up: so they are read from a second log.
    assert command.main(["calibrate", steps, "-o", out, "--origin", "made up"]) == 0
    fitted = profile.load(out)
    assert fitted.origin == "made up"
    for name in StepTiming.__dataclass_fields__:
        if not name.startswith("request"):
            assert getattr(fitted.timing, name) == pytest.approx(getattr(KNOWN, name), rel=1e-6), name
    assert fitted.fit["decode"]["mape_percent"] < 1e-3
    assert "prefill_token_seconds" in capsys.readouterr().out

    only_small = [*lines[:400], *[line | {"tl": line["tl"] - 1e6} for line in lines[400:]]]
    earlier = list(probe_lines(KNOWN, only_small))
    ordered = write(tmp_path / "ordered.jsonl", sorted(only_small, key=lambda line: line["tl"]))
    assert command.main(["calibrate", ordered, "--requests", write(tmp_path / "p.jsonl", earlier), "-o", out]) == 0
    timing = profile.load(out).timing
    assert timing.request_seconds(50) == pytest.approx(KNOWN.request_seconds(50), rel=1e-3)
    assert probes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=4, max_size=4), st.integers(0, 10_000))
def test_non_negative_least_squares_is_the_optimum(coefficients, seed):
    random = np.random.default_rng(seed)
    features = random.uniform(0.1, 2, (30, 4))
    seconds = features @ np.array(coefficients) + random.uniform(0.05, 1, 30)
    found = non_negative(features, seconds, "rows")

    def error(c):
        return (((features @ c) / seconds - 1) ** 2).sum()

    assert (found >= 0).all()
    for index in range(4):  # no way down along any axis
        for change in (-1e-4, 1e-4):
            near = found.copy()
            near[index] = max(0.0, near[index] + change)
            assert error(near) >= error(found) - 1e-9


def test_quality_in_percent():
    assert quality(np.array([1.0, 2.0]), np.array([1.1, 1.8])) == (2, 10.0, 10.0, -3.33)


def test_what_decodes_together_is_measured_while_all_do():
    first = Answer(100, 0, 0.0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    late = Answer(50, 0, 0.0, [3.5, 4.0, 5.0, 6.0, 7.0])
    assert together([first, late]) == (2, 150 + 4 + 2, 1.0)


class VirtualClient:
    """A server in virtual time: an engine behind its front door."""

    def __init__(self, timing, **config):
        self.engine = Engine(EngineConfig(timing=timing, overlap_schedule=True, context_length=65_536, **config))
        self.door = FrontDoor(timing)
        self.now, self.coming, self.answers = 0.0, [], {}

    async def generate(self, prompt, max_new_tokens):
        rid = str(len(self.answers))
        self.answers[rid] = Answer(len(prompt), 0, self.now, [])
        request = Request(rid, np.array(prompt, np.uint32), max_new_tokens, ignore_eos=True)
        self.coming.append((self.door.arrival(self.now, len(prompt)), request))
        await asyncio.sleep(0)  # until all that are sent together are here
        while self.coming or self.engine.busy:
            self.step()
        return self.answers[rid]

    def step(self):
        if not self.engine.busy:
            self.now = max(self.now, self.coming[0][0])
        while self.coming and self.coming[0][0] <= self.now:
            self.engine.submit(self.coming.pop(0)[1], self.now)
        step = self.engine.step(self.now)
        self.now += step.duration_seconds
        for output in step.outputs:
            answer = self.answers[output.rid]
            answer.token_times.append(self.now)
            self.answers[output.rid] = answer._replace(cached_tokens=output.cached_tokens)


async def test_a_server_gives_its_model_back():
    timing = replace(KNOWN, prefill_sequence_seconds=0.0, prefill_context_seconds=0.0, prefill_graph_tokens=512)
    plan = Plan(
        new_tokens=(16, 512, 700, 1024, 2048, 4096),
        cached_tokens=(0, 512, 2048),
        batches=(1, 4, 8),
        contexts=(256, 1024),
        repeats=1,
        chunk_tokens=512,
        graph_tokens=512,
    )
    measurement = Measurement(VirtualClient(timing, chunked_prefill_tokens=512), plan, lambda _line: None)
    probes = await measurement.probes()
    assert sorted({probe.cached_tokens for probe in probes}) == [0, 512, 2048]
    fitted, fit = fit_live(probes, await measurement.series(), plan)
    for name in StepTiming.__dataclass_fields__:
        assert getattr(fitted, name) == pytest.approx(getattr(timing, name), rel=0.02), name
    assert fit["ttft"]["mape_percent"] < 0.1
    assert fit["decode"]["mape_percent"] < 0.5


async def test_a_live_worker_is_measured():
    """The same over HTTP; how long it takes depends on who else is on this machine."""
    config = WorkerConfig(max_total_tokens=20_000, context_length=8192, kv_events_port=0, page_size=16)
    plan = Plan(
        new_tokens=(16, 512, 1024, 2048),
        cached_tokens=(0, 512),
        batches=(1, 4),
        contexts=(64, 256),
        decode_tokens=8,
        repeats=1,
    )
    said = []
    async with FakeWorker(config) as worker:
        timing, fit = await calibrate(worker.url, plan, said.append)
    assert len(said) == 8 + 4
    assert (fit["ttft"]["rows"], fit["decode"]["rows"]) == (8, 4)
    assert timing.prefill_seconds([2048], [0]) > 0
    assert timing.decode_seconds(4, 1000, 1) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.json"], "either step logs or --url, please"),
        (["{none}", "-o", "x.json"], "No such file"),
        (["{text}", "-o", "x.json"], "line 2: Object missing required field `m`"),
        (["{empty}", "-o", "x.json"], "no step with a time (g)"),
        (["{cut}", "-o", "x.json"], "damaged"),
        (["{few}", "-o", "x.json"], "1 decode steps are too few to fit 3 numbers to"),
        (["{few}", "--linear-from", "9999", "-o", "x.json"], "no prefill of 9999 or more new tokens"),
        (["{few}", "--requests", "{few}", "-o", "x.json"], "k"),
        (["--url", "http://127.0.0.1:1", "-o", "x.json"], "Connect"),
        (["{few}", "-o", "x.json", "--new", "1,x"], "'x' is not a whole number"),
    ],
)
def test_bad_input_makes_one_line(tmp_path, capsys, arguments, message):
    few = [{"m": "E", "ext": [600 + n], "pre": [0], "g": 20 + n} for n in range(9)] + [
        {"m": "D", "bs": 1, "kv": 9, "g": 5}
    ]
    files = {
        "none": str(tmp_path / "none"),
        "text": write(tmp_path / "text.jsonl", [{"m": "D", "g": 1}, {"x": 1}]),
        "empty": write(tmp_path / "empty.jsonl", [{"m": "D"}]),
        "few": write(tmp_path / "few.jsonl", few),
        "cut": str(tmp_path / "cut.gz"),
    }
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(SystemExit) as ended:
        command.main(["calibrate", *(argument.format(**files) for argument in arguments)])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("python -m sim calibrate: error: ")
    assert message in said


def test_the_projects_profile_is_what_the_recorded_calibration_gives(tmp_path):
    folder = recording("calibration")
    out = tmp_path / "h200.json"
    steps, probes = folder / "steps_p16.jsonl.gz", folder / "requests_p16.jsonl.gz"
    assert command.main(["calibrate", str(steps), "--requests", str(probes), "-o", str(out)]) == 0
    ours, again = profile.load(profile.DEFAULT), profile.load(out)
    assert again.fit == ours.fit
    for name in StepTiming.__dataclass_fields__:
        assert getattr(again.timing, name) == pytest.approx(getattr(ours.timing, name), rel=2e-3), name


def test_too_few_rows_are_an_error_not_a_fit():
    with pytest.raises(UsageError, match="2 rows are too few to fit 3 numbers to"):
        non_negative(np.ones((2, 3)), np.ones(2), "rows")


class Apart:
    """Answers one request after the other, `apart` seconds from begin to begin, a token every second."""

    def __init__(self, apart):
        self.apart, self.begun, self.asked = apart, 0, []

    async def generate(self, prompt, max_new_tokens):
        begin = self.apart * self.begun
        self.begun += 1
        self.asked.append(max_new_tokens)
        return Answer(len(prompt), 0, begin, [begin + token for token in range(max_new_tokens)])


async def test_sequences_that_miss_each_other_are_asked_for_longer():
    plan = Plan(batches=(2,), contexts=(64,), decode_tokens=4, repeats=1)
    client = Apart(8.0)
    (series,) = await Measurement(client, plan, lambda _line: None).series()
    assert client.asked == [6, 6, 12, 12]
    assert (series.sequences, series.step_seconds) == (2, 1.0)
    with pytest.raises(
        UsageError, match="2 requests of 64 tokens do not decode side by side, even for 192 tokens each"
    ):
        await Measurement(Apart(1000.0), plan, lambda _line: None).series()
