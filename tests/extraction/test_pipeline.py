"""One stream over all parts: overlapping, in order, never mixed, and honest about where the time goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_image
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import InputError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.meter import Meter, Usage
from featurecache.extraction.modality import InputDigests, Loaded
from featurecache.extraction.pipeline import run_chunks, to_stored
from featurecache.progress import Silent
from featurecache.specs import ExtractionSettings, ViewSpec
from featurecache.store.dtypes import encode


@dataclass(frozen=True)
class Number:
    """An input that is its own features; negative ones are bad."""

    value: int

    @property
    def name(self) -> str:
        return str(self.value)

    def read(self, max_bytes: int | None = None) -> bytes:
        if self.value < 0:
            raise InputError("missing", "it is negative")
        return str(self.value).encode()


class Numbers:
    """The modality of numbers: each view adds a tenth."""

    max_bytes, stage_names, reference_inputs = 100, ("a", "b"), ()
    undisturbed: Any = None

    def __init__(self, num_views: int = 1) -> None:
        self.views = None if num_views == 1 else ViewSpec(count=num_views)
        self._num_views = num_views

    def empty(self, count: int) -> np.ndarray:
        return np.zeros((count, 1), np.float64)

    def load(self, data: bytes, *, digested: bool = False) -> Loaded:
        arrays = np.array([[int(data) + view / 10] for view in range(self._num_views)])
        return Loaded(arrays, digests=InputDigests(data.decode(), "") if digested else None)


@dataclass
class Echo:
    """A runtime that gives back what it gets, some batches later."""

    batch_size: int
    delay: int = 0
    name, device, precision, lengths = "echo", "cpu", "float32", ()
    resizes = False
    seen: list[np.ndarray] = field(default_factory=list)
    memory: set[int] = field(default_factory=set)

    def map(self, batches: Iterable[np.ndarray]) -> Generator[dict[str, np.ndarray], None, None]:
        waiting: list[np.ndarray] = []
        for batch in batches:
            assert batch.shape == (self.batch_size, 1)
            self.seen.append(batch.copy())
            self.memory.add(batch.ctypes.data)
            waiting.append(batch)
            if len(waiting) > self.delay:
                yield {"t": waiting.pop(0).astype(np.float32)}
        for batch in waiting:
            yield {"t": batch.astype(np.float32)}


@given(
    sizes=st.lists(st.integers(1, 23), max_size=6),
    batch_size=st.integers(1, 9),
    delay=st.integers(0, 5),
    num_views=st.integers(1, 3),
    workers=st.integers(1, 4),
)
def test_every_input_comes_once_in_order_with_its_chunk(
    sizes: list[int], batch_size: int, delay: int, num_views: int, workers: int
) -> None:
    parts = [(f"part {p}", [Number(100 * p + n if n % 5 else -1) for n in range(size)]) for p, size in enumerate(sizes)]
    runtime = Echo(batch_size, delay)
    found: dict[str, list[Any]] = {}
    for part, outcome in run_chunks(parts, runtime, Numbers(num_views), num_workers=workers):
        rows = [None if p else v for v, p in zip(outcome.features["t"].tolist(), outcome.problems, strict=True)]
        found.setdefault(part, []).extend(rows)
    views = [np.float32(view / 10) for view in range(num_views)]
    assert list(found) == [part for part, _ in parts]
    for part, inputs in parts:
        assert len(found[part]) == len(inputs)
        for number, row in zip(inputs, found[part], strict=True):
            values = [[float(np.float32(number.value + view))] for view in views]
            expected = values[0] if num_views == 1 else values
            assert (row is None) == (number.value < 0)
            assert row is None or np.allclose(row, expected)
    num_batches = sum(-(-len(inputs) * num_views // batch_size) for _, inputs in parts)
    assert len(runtime.seen) == num_batches  # no batch holds two parts


def test_the_next_part_is_loaded_while_the_last_batches_of_one_are_computed() -> None:
    asked_for = []

    def parts() -> Iterator[tuple[int, list[Number]]]:
        for part in range(100):
            asked_for.append(part)
            yield part, [Number(n) for n in range(100)]

    outcomes = run_chunks(parts(), Echo(10), Numbers())
    part, outcome = next(outcomes)
    assert (part, len(outcome.problems)) == (0, 10)
    assert asked_for == [0, 1]  # and no further than needed
    outcomes.close()


def test_the_first_good_inputs_of_each_part_are_digested_on_their_way() -> None:
    parts = [("a", [Number(n) for n in (7, -1, 8, 9)]), ("b", [Number(1)])]
    found: dict[str, list[Any]] = {"a": [], "b": []}
    for part, outcome in run_chunks(parts, Echo(3), Numbers(), num_digested=3):
        found[part] += [digests and digests.decoded for digests in outcome.digests]
    assert found == {"a": ["7", None, "8", None], "b": ["1"]}


def test_batches_share_few_pieces_of_memory_and_nothing_of_an_earlier_one_shows() -> None:
    """What is bad, and what pads the end of a chunk, is zero in each batch."""
    values = [n if n % 11 else -1 for n in range(1, 200)]
    parts = [(part, [Number(value) for value in values]) for part in range(5)]
    runtime = Echo(8, delay=2)
    for _ in run_chunks(parts, runtime, Numbers()):
        pass
    assert len(runtime.seen) == 5 * 25
    padded = np.array([[*values, -1]] * 5)  # 199 in batches of 8
    assert np.array_equal(np.concatenate(runtime.seen).reshape(5, 200), np.where(padded < 0, 0, padded))
    # As many as are loaded ahead, the one that is being filled, and those that the runtime holds.
    assert len(runtime.memory) <= 16 + 1 + 3


def test_closing_ends_the_loading_threads() -> None:
    outcomes = run_chunks([(0, [Number(n) for n in range(10_000)])], Echo(4), Numbers(), num_workers=3)
    next(outcomes)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    outcomes.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_the_meter_counts_inputs_reads_and_waits() -> None:
    meter = Meter(cores=2)
    with meter.running():
        for _, outcome in run_chunks([(0, [Number(n) for n in range(50)])], Echo(4), Numbers(), meter=meter):
            meter.num_inputs += len(outcome.problems)
    usage = meter.usage()
    assert usage.num_inputs == 50
    assert all(usage.work[stage] > 0 for stage in ("read", "decode"))
    assert usage.seconds >= usage.waited["decode"] + usage.waited["forward"] > 0


USAGE = Usage(
    num_inputs=100,
    seconds=10.0,
    work={"read": 1.0, "decode": 4.0, "forward": 9.0, "write": 0.5},
    waited={"read": 0.0, "decode": 1.0, "forward": 2.0, "write": 0.5},
    cpu_seconds=8.0,
    loading_cpu_seconds=5.0,
    cores=16,
    device="cuda",
)


@pytest.mark.parametrize(
    ("change", "bottleneck", "advice", "sentence"),
    [
        ({}, "forward", "a larger --batch-size", "waiting for forward"),
        ({"waited": {**USAGE.waited, "decode": 5.0}}, "decode", "more --jobs", "waiting for decode"),
        (
            {"waited": {**USAGE.waited, "decode": 5.0}, "work": {**USAGE.work, "read": 9.0}},
            "read",
            "faster storage",
            "waiting for read",
        ),
        ({"waited": {**USAGE.waited, "write": 5.0}}, "write", "faster storage for the cache", "waiting for write"),
        ({"cores": 1, "cpu_seconds": 9.5}, "cores", "store smaller inputs", "cores busy, 53% decoding"),
        ({"cores": 4, "cpu_seconds": 36.0}, "cores", "a smaller network", "cores busy, 14% decoding"),
        # One core of four has nothing to do: more threads would help.
        ({"cores": 4, "cpu_seconds": 31.0}, "forward", "a larger --batch-size", "waiting for forward"),
        (
            {"cores": 1, "cpu_seconds": 9.5, "loading_cpu_seconds": 3.5},
            "cores",
            "store smaller inputs",
            "cores busy, 37% decoding",
        ),
        (
            {"cores": 1, "cpu_seconds": 9.5, "loading_cpu_seconds": 2.0},
            "cores",
            "a smaller network",
            "cores busy, 21% decoding",
        ),
        # Texts: that they are long, or that most of a batch is padding, is the cause.
        ({"num_tokens": 2000, "num_padded": 2600}, "forward", "a larger --batch-size", "waiting for forward"),
        (
            {"num_tokens": 12_000, "num_padded": 15_000},
            "forward",
            "a lower --max-tokens (texts have 120 tokens on average, and each takes its time), a larger --batch-size",
            "waiting for forward",
        ),
        (
            {"cores": 4, "cpu_seconds": 36.0, "num_tokens": 2000, "num_padded": 25_600, "one_length": True},
            "cores",
            "a lower --max-tokens (92% is padding: this network or tap takes one length alone), or a GPU",
            "cores busy, 14% decoding",
        ),
        (
            {"cores": 1, "cpu_seconds": 9.5, "num_tokens": 12_000, "num_padded": 15_000},
            "cores",
            "store smaller inputs",
            "cores busy, 53% decoding",
        ),
    ],
)
def test_what_binds_is_named_with_what_to_change(
    change: dict[str, Any], bottleneck: str, advice: str, sentence: str
) -> None:
    usage = replace(USAGE, **change)
    assert usage.bottleneck == bottleneck
    assert usage.advice.startswith(advice)
    assert usage.sentence() == sentence
    assert f"the limit: {bottleneck}; to speed up: {usage.advice}" in usage.summary()
    assert usage.to_json()["bottleneck"] == bottleneck


def test_half_numbers_are_numpys_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((64, 1000)) * 10.0 ** rng.integers(-9, 4, (64, 1000))).astype(np.float32)
    values[3, 5], values[4, 6], values[5, 7], values[6, 8] = np.nan, 65520.0, -np.inf, 65504.0
    stored, problems = to_stored(values, [None] * 63 + [InputError("missing", "gone")], "float16")
    assert {place: problem.status for place, problem in problems.items()} == {
        3: "non_finite",
        4: "overflow",
        5: "non_finite",
        63: "missing",
    }
    expected = values.copy()
    expected[[3, 4, 5, 63]] = np.nan
    assert stored.tobytes() == encode(expected, "float16").tobytes()
    assert not np.isnan(values[63]).any()  # what came in is left alone


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_run_says_where_its_time_went(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.extraction.worker._SECONDS_BETWEEN_REMARKS", 0.0)
    source, listener = make_folder(per_class=4), Listener()
    write_image(source / "red" / "new.png", (200, 0, 0), seed=50)
    settings = ExtractionSettings(runtime="torch", batch_size=4)
    request = make_request(TINY)
    report = run_extraction(source, tmp_path / "c", request, settings=settings, progress=listener)
    (usage,) = report.to_json()["usage"]
    assert usage["inputs"] == 13
    assert usage["bottleneck"] in ("cores", "read", "decode", "forward", "write")
    assert listener.said
    assert 0 < report.startup_seconds < report.seconds
    assert run_extraction(source, tmp_path / "c", request, settings=settings).usage == []
