"""What every source does."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import InputError
from featurecache.sources.entries import Entries
from featurecache.sources.opening import SourceSpec, open_spec
from featurecache.sources.source import check_source

Samples = Mapping[str, bytes]


class SourceContract:
    """Laws of `featurecache.sources.source.Source`; a subclass says how to make one."""

    def make_source(self, folder: Path) -> tuple[SourceSpec, Samples]:
        """Return the spec of a new source, and the names and bytes of its samples: two or more.

        Parameters
        ----------
        folder : Path
            Empty, for whatever the source needs on disk.
        """
        # Not abstract: pytest would pass over a subclass that forgot it, without a word.
        raise NotImplementedError(f"{type(self).__name__} is to define make_source, which this contract asks")

    def change(self, spec: SourceSpec, name: str) -> None:
        """Give a sample other bytes, as somebody else would while a run goes on; needed where entries have stamps."""
        raise NotImplementedError(f"{type(self).__name__} lists stamps; override change(spec, name)")

    @pytest.fixture
    def prepared(self, tmp_path: Path) -> tuple[SourceSpec, Samples]:
        """A new source for each test."""
        folder = tmp_path / "source"
        folder.mkdir()
        return self.make_source(folder)

    def test_a_spec_travels_and_opens_the_same_source(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, _ = prepared
        copy = pickle.loads(pickle.dumps(spec))
        assert copy == spec
        first, second = open_spec(spec), open_spec(copy)
        assert (first.key, first.modality) == (second.key, second.modality)
        assert first.key
        assert first.modality in ("image", "text")
        check_source(first)

    def test_each_sample_is_listed_once_and_twice_the_same(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, samples = prepared
        source = open_spec(spec)
        units = list(source.units())
        assert len(set(units)) == len(units)
        assert list(source.units()) == units
        names = [entry.name for unit in units for entry in source.list(unit)]
        assert sorted(names) == sorted(samples)
        again = open_spec(spec)
        assert [entry.name for unit in again.units() for entry in again.list(unit)] == names

    def test_untouched_samples_keep_their_stamps(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, _ = prepared
        before, after = Entries.of(open_spec(spec)), Entries.of(open_spec(spec))
        settled = (before.stamps[:, 2] >= 0) & (after.stamps[:, 2] >= 0)
        unchanged = after.unchanged_since(before.names, before.stamps) == np.arange(len(before.names))
        assert (unchanged == settled).all()

    def test_it_reads_what_it_lists_in_that_order(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, samples = prepared
        source = open_spec(spec)
        for unit in source.units():
            assert list(source.read(unit)) == [(entry.name, samples[entry.name]) for entry in source.list(unit)]

    def test_samples_open_by_name_in_many_threads(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, samples = prepared
        source = open_spec(spec)
        stamps = {entry.name: entry.stamp for unit in source.units() for entry in source.list(unit)}
        names = [*stamps] * 5
        # Decoding threads open samples at the same time.
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda name: source.open(name, stamp=None), names))
        assert found == [samples[name] for name in names]
        settled = {name: stamp for name, stamp in stamps.items() if stamp is not None and stamp[2] >= 0}
        assert {name: source.open(name, stamp=stamp) for name, stamp in settled.items()} == {
            name: samples[name] for name in settled
        }

    def test_a_name_that_it_does_not_list_is_a_bad_input(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, _ = prepared
        with pytest.raises(InputError):
            open_spec(spec).open("no sample has this name", stamp=None)

    def test_it_says_that_a_sample_changed(self, prepared: tuple[SourceSpec, Samples]) -> None:
        spec, samples = prepared
        source = open_spec(spec)
        entry = next(entry for unit in source.units() for entry in source.list(unit))
        if entry.stamp is None:  # nothing tells whether it changed: the source is read at each scan
            assert source.open(entry.name, stamp=None) == samples[entry.name]
            return
        self.change(spec, entry.name)
        with pytest.raises(InputError) as raised:
            source.open(entry.name, stamp=entry.stamp)
        assert raised.value.status == "changed"
        assert source.open(entry.name, stamp=None) != samples[entry.name]
        after = open_spec(spec)
        assert dict(item[:2] for unit in after.units() for item in after.list(unit))[entry.name] != entry.stamp
