"""Texts of about one length share batches: the features of each alone, and always the same bytes."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import need
from hypothesis import given
from hypothesis import strategies as st
from tiny_texts import by_hand, shards, some_texts, write_encoder, write_table
from torch import nn

from featurecache.backbones.lengths import candidate_lengths, full_length, lengths_for, padded_length
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import ComparedRuntime, open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.extraction import drift, loading, worker
from featurecache.extraction.deep_verification import verify_deep
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.loading import cut_into_batches
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import run_pipeline
from featurecache.extraction.recomputation import Inputs, recompute_set_aside
from featurecache.extraction.report import ExtractionReport
from featurecache.progress import Silent
from featurecache.sources.in_memory import InMemory
from featurecache.sources.inputs import inputs_of
from featurecache.sources.opening import open_source
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.store.repair import repair
from featurecache.store.store import FeatureStore

MOST = 64
LENGTHS = (16, 24, 32, 48, 64)
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=16, dtype="float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("hub") / "tiny-bert", max_position_embeddings=MOST)


def texts_of_many_lengths(count: int) -> list[str]:
    """Texts of 3 to 66 tokens, the long ones among the short, and one that is empty."""
    texts = [text + " the" * (index * 37 % 61) for index, text in enumerate(some_texts(count))]
    return [*texts[:5], "", *texts[5:]]


def run(table: Path, cache: Path, encoder: Path, **options: Any) -> ExtractionReport:
    named = {name: options.pop(name) for name in ("num_workers", "runtime") if name in options}
    request = make_request(f"hf:{encoder}")
    settings = replace(SETTINGS, **named)
    return run_extraction(table, cache, request, text_column="text", settings=settings, **options)


def provenances(report: ExtractionReport) -> list[dict[str, Any]]:
    return [commit.body["provenance"] for commit in report.sets[0].open().commits]


@given(max_tokens=st.integers(1, 3000), num_tokens=st.integers(0, 4000))
def test_lengths_are_few_and_a_text_takes_the_least_that_holds_it(max_tokens: int, num_tokens: int) -> None:
    lengths = candidate_lengths(max_tokens)
    assert list(lengths) == sorted(set(lengths))
    assert lengths[-1] == max_tokens
    assert all(after <= before * 3 / 2 for before, after in pairwise(lengths))
    found = padded_length(num_tokens, lengths)
    assert found == min([length for length in lengths if length >= num_tokens], default=max_tokens)


@given(counts=st.lists(st.integers(0, MOST), min_size=1, max_size=40), batch_size=st.integers(1, 9))
def test_batches_hold_each_text_once_in_the_order_of_equals(counts: list[int], batch_size: int) -> None:
    tokens = np.where(np.arange(MOST) < np.array(counts)[:, None], np.arange(len(counts))[:, None], -1).astype(np.int32)
    batches = cut_into_batches(tokens, batch_size, LENGTHS, lambda count: np.full((count, MOST), -1, np.int32))
    for batch, indices in batches:
        assert len(batch) == batch_size
        assert {padded_length(counts[index], LENGTHS) for index in indices} == {batch.shape[1]}
        np.testing.assert_array_equal(batch[: len(indices)], tokens[indices][:, : batch.shape[1]])
        assert (batch[len(indices) :] == -1).all()
    order = [index for _, indices in batches for index in indices.tolist()]
    assert order == sorted(range(len(counts)), key=lambda index: padded_length(counts[index], LENGTHS))


def test_features_equal_a_loop_of_one_text_at_a_time(encoder: Path, tmp_path: Path) -> None:
    texts = texts_of_many_lengths(40)
    table = write_table(tmp_path / "t.csv", texts)
    report = run(table, tmp_path / "c", encoder)
    assert all(p["lengths"] == list(LENGTHS) for p in provenances(report))
    (usage,) = report.usage
    assert usage.num_tokens < usage.num_padded < MOST * len(texts)
    listing = report.store.listings.load(open_source(table, text_column="text").key)
    assert listing is not None
    assert list(report.bad.values()) == [("empty", "the text has no bytes")]
    features = report.sets[0].open()
    for row, text in zip(listing.rows.tolist(), texts, strict=True):
        if text:
            expected = by_hand(encoder, text, max_tokens=MOST).mean(0)
            np.testing.assert_allclose(features.read(np.array([row]))[0], expected, atol=1e-5, err_msg=text)


def test_bytes_depend_on_neither_workers_nor_resuming_nor_which_shards_are_taken(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_TEXTS_TOGETHER", 8)
    monkeypatch.setattr(loading, "_BATCHES_TOGETHER", 2)
    table = write_table(tmp_path / "t.csv", texts_of_many_lengths(40))
    run(table, tmp_path / "one", encoder, num_workers=1)
    run(table, tmp_path / "four", encoder, num_workers=4)
    assert len(shards(tmp_path / "one")) > 3
    assert shards(tmp_path / "one") == shards(tmp_path / "four")
    publish, count = worker.Worker._publish, iter(range(100))

    def killed(self: worker.Worker, *job: Any) -> Any:
        if next(count) == 1:
            raise KeyboardInterrupt
        return publish(self, *job)

    planned = worker.missing_shards
    with monkeypatch.context() as patch:  # the last shard alone, then the others
        patch.setattr(worker, "missing_shards", lambda *args, **options: planned(*args, **options)[::-1])
        patch.setattr(worker.Worker, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(table, tmp_path / "killed", encoder)
    assert 0 < len(shards(tmp_path / "killed")) < len(shards(tmp_path / "one"))
    run(table, tmp_path / "killed", encoder)
    assert shards(tmp_path / "killed") == shards(tmp_path / "one")


def test_a_cache_of_texts_padded_to_the_most_tokens_is_continued(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of_many_lengths(30)
    table = write_table(tmp_path / "t.csv", texts[:16])
    with monkeypatch.context() as patch:  # as earlier releases: nothing is recorded of lengths
        patch.setattr("featurecache.backbones.runtimes.lengths_for", lambda backbone, taps, recorded: ())
        before = run(table, tmp_path / "c", encoder)
    assert "lengths" not in provenances(before)[0]
    compared, check = [], drift.check_stored
    monkeypatch.setattr(drift, "check_stored", lambda *args: (compared.append(args[0]), check(*args)))
    write_table(table, texts)
    report = run(table, tmp_path / "c", encoder)
    assert len(report.store.feature_sets()) == 1
    assert [p.get("lengths") for p in provenances(report)] == [None, list(LENGTHS)]
    assert len(compared) == 1  # it took what is stored for something to compare
    run(write_table(table, [*texts, "a new river"]), tmp_path / "c", encoder)
    assert len(compared) == 1
    inputs = Inputs(source=table, text_column="text", backbone=f"hf:{encoder}", settings=SETTINGS)
    found = verify_deep(report.store, inputs)
    assert found.problems == []
    assert found.num_rows == found.num_identical + found.num_close > 30
    whole = shards(tmp_path / "c")
    first = max((tmp_path / "c" / "features").rglob("*.h5"), key=lambda path: path.stat().st_size)
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    assert repair(FeatureStore.open(report.store.path))
    assert recompute_set_aside(FeatureStore.open(report.store.path), inputs) == 16
    found_now = shards(tmp_path / "c")
    # Padded as it was; the record says so now.
    assert [d for n, d in found_now.items() if n.endswith(".h5")] == [d for n, d in whole.items() if n.endswith(".h5")]
    assert [p.get("lengths") for p in provenances(report)] == [[MOST], list(LENGTHS), list(LENGTHS)]


def test_one_length_that_is_recorded_is_kept(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "t.csv", some_texts(6))
    with monkeypatch.context() as patch:
        patch.setattr("featurecache.backbones.lengths._is_padding_hidden", lambda *_: False)
        run(table, tmp_path / "c", encoder)
    report = run(write_table(table, some_texts(12)), tmp_path / "c", encoder)
    assert [p["lengths"] for p in provenances(report)] == [[MOST]] * 2
    assert report.usage[0].one_length


class Blind(nn.Module):
    """A network that attends to its padding."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.network(input_ids=input_ids, attention_mask=torch.ones_like(attention_mask))


def test_where_padding_or_the_length_matters_texts_have_one_length(encoder: Path) -> None:
    backbone = load_backbone(BackboneRequest(name=f"hf:{encoder}"))
    taps = {pooling: resolve_taps(backbone, [f"encoder.layer.1:{pooling}"]) for pooling in ("mean", "max", "none")}
    assert lengths_for(backbone, taps["mean"]) == lengths_for(backbone, taps["max"]) == LENGTHS
    assert lengths_for(backbone, taps["none"]) == (MOST,)
    assert lengths_for(backbone, [*taps["mean"], *taps["none"]]) == (MOST,)
    blind = replace(backbone, module=Blind(backbone.module))
    assert lengths_for(blind, resolve_taps(blind, ["network.encoder.layer.1:mean"])) == (MOST,)
    # What a stranger wrote is not followed where it cannot be; what an earlier release chose is.
    for recorded in ((), (16,), (64, 16), (0, 64), (16, 16, 64), (16, 99)):
        assert lengths_for(backbone, taps["mean"], recorded=recorded) == LENGTHS
    assert lengths_for(backbone, taps["mean"], recorded=(20, 64)) == (20, 64)


def test_words_have_the_same_features_at_each_length() -> None:
    need("tokenizers")
    backbone = load_backbone(BackboneRequest(name="words"))
    taps = resolve_taps(backbone, ["default"])
    inputs = list(inputs_of(InMemory({str(n): b"Win a prize " * n for n in range(1, 12)}, "text")))
    modality, found = modality_of(backbone.preprocess, backbone.tokenizer), []
    for lengths in (full_length(backbone), candidate_lengths(*full_length(backbone))):
        runtime = open_runtime(backbone, taps, runtime="torch", lengths=lengths)
        assert runtime.lengths == lengths
        found.append(np.concatenate([o.features[taps[0].name] for o in run_pipeline(inputs, runtime, modality)]))
        runtime.close()
    np.testing.assert_array_equal(*found)


def test_openvino_takes_every_length(encoder: Path, tmp_path: Path) -> None:
    need("openvino")
    table = write_table(tmp_path / "t.csv", texts_of_many_lengths(30))
    reference = run(table, tmp_path / "torch", encoder)
    report = run(table, tmp_path / "openvino", encoder, runtime="openvino")
    assert report.runtime == "openvino"
    assert provenances(report)[0]["lengths"] == list(LENGTHS)
    found, expected = (r.store.features() for r in (report, reference))
    rows = np.setdiff1d(found.rows, list(found.bad))
    np.testing.assert_allclose(found.read(rows), expected.read(rows), atol=1e-4)


class Sums:
    """A runtime that sums the tokens, wrong by one from some length on."""

    name, device, precision, batch_size, lengths, trial = "sums", "cpu", "float32", 1, LENGTHS, {}
    norms_folded, resizes = False, False

    def __init__(self, wrong_from: int = 1000) -> None:
        self.wrong_from, self.seen = wrong_from, []

    def map(self, batches: Iterable[np.ndarray]) -> Generator[dict[str, np.ndarray], None, None]:
        waiting = []
        for batch in batches:
            self.seen.append(batch.shape[1])
            waiting.append({"t": batch.sum(axis=1, dtype=np.float32) + (batch.shape[1] >= self.wrong_from)})
            if len(waiting) > 2:
                yield waiting.pop(0)
        yield from waiting

    def compare_again(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_fast_runtime_is_compared_at_each_length() -> None:
    batches = [np.full((1, length), value, np.int32) for length in (16, 24, 32) for value in range(5)]
    expected = [batch.sum() for batch in batches]
    fast, reference = Sums(), Sums()
    compared = ComparedRuntime(fast, reference, what="sums")
    assert [float(features["t"][0]) for features in compared.map(batches)] == expected
    assert reference.seen == [16, 24, 32]
    assert sorted(fast.seen) == sorted(batch.shape[1] for batch in batches)
    fast, reference = Sums(wrong_from=24), Sums()
    compared = ComparedRuntime(fast, reference, what="sums")
    assert [float(features["t"][0]) for features in compared.map(batches)] == expected
    assert fast.seen == [16] * 5 + [24]


class Counter(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def start(self, phase: str, total: int) -> None:
        self.steps = []  # of the last phase

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.steps.append((count, bad))


def test_progress_goes_on_from_batch_to_batch(encoder: Path, tmp_path: Path) -> None:
    counter = Counter()
    table = write_table(tmp_path / "t.csv", texts_of_many_lengths(40))
    run(table, tmp_path / "c", encoder, progress=counter)
    assert tuple(map(sum, zip(*counter.steps, strict=True))) == (41, 1)
    assert max(count for count, _ in counter.steps) == 4
