"""A kind of source from outside the package, in one file: extracted, compared, verified and predicted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from conftest import TINY

import featurecache as fc
from featurecache import plugins
from featurecache.cli import main
from featurecache.deployment.kept import keep_head
from featurecache.errors import InputError, SourceError, UnknownNameError
from featurecache.extraction.deep_verification import verify_deep
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.inventory import take_inventory
from featurecache.extraction.recomputation import Inputs
from featurecache.sources.entries import Entries
from featurecache.sources.opening import open_source
from featurecache.sources.source import Entry, Stamp, Unit, check_source
from featurecache.specs import ExtractionSettings

Make = Callable[..., Path]
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)
OBJECTS: dict[str, tuple[int, bytes]] = {}
"""Name -> version and bytes, as on a server."""
OPENED: Counter[str] = Counter()


class Shelf:
    """Objects under a prefix, a unit for each first folder, listed in no order at all."""

    modality = "image"

    def __init__(self, url: str) -> None:
        self.key, self._root = url, url.partition("://")[2]

    def units(self) -> Iterator[Unit]:
        return (Unit(name) for name in sorted({name.split("/")[1] for name in OBJECTS}, reverse=True))

    def list(self, unit: Unit) -> Iterator[Entry]:
        for name, (version, data) in reversed(OBJECTS.items()):
            if name.startswith(f"{self._root}/{unit.name}/"):
                yield Entry(name.removeprefix(f"{self._root}/"), (len(data), version, 0, 0))

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        return ((entry.name, self.open(entry.name, stamp=entry.stamp)) for entry in self.list(unit))

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        version, data = OBJECTS[f"{self._root}/{name}"]
        if stamp is not None and stamp != (len(data), version, 0, 0):
            raise InputError("changed", "the object was replaced")
        OPENED[name] += 1
        return data


@pytest.fixture
def shelf(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = make_folder(per_class=4)
    OBJECTS.clear()
    for path in sorted(folder.rglob("*.png")):
        OBJECTS[f"photos/{path.relative_to(folder).as_posix()}"] = (1, path.read_bytes())
    points = EntryPoints([EntryPoint("shelf", f"{__name__}:Shelf", "featurecache.sources")])
    monkeypatch.setattr(plugins, "entry_points", lambda group, **names: points.select(group=group, **names))
    return "shelf://photos"


def test_it_is_used_wherever_a_folder_is(shelf: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_extraction(shelf, tmp_path / "c", make_request(TINY), settings=SETTINGS)
    assert (report.num_files, report.num_extracted, report.bad) == (12, 12, {})
    folder = fc.extract(tmp_path / "photos", tmp_path / "folder", backbone=TINY, settings=SETTINGS)
    assert report.store.features()[:].tobytes() == folder.features()[:].tobytes()  # rows in the order of the names
    store = fc.FeatureStore.open(tmp_path / "c")
    OPENED.clear()
    assert run_extraction(shelf, tmp_path / "c", make_request(TINY), settings=SETTINGS).num_extracted == 0
    assert not OPENED  # a run over untouched objects reads none of them
    assert verify_deep(store, Inputs(source=shelf, backbone=TINY)).num_identical == 12
    task = store.add_task("colour", fc.labels_from_folders())
    head = keep_head(store, "best", fc.train_heads(store, task, store.feature_sets(), ["ridge"]).best)
    labels = {p.path: p.label for p in fc.predict(head, [shelf], backbone=TINY, settings=SETTINGS)}
    assert labels == {name: name.split("/")[0] for name in Entries.of(Shelf(shelf)).names}
    cache = str(tmp_path / "c")
    assert main(["extract", shelf, "--cache", cache, "--backbone", TINY, "--quiet"]) == 0
    assert main(["predict", str(head), shelf, "--backbone", TINY, "--quiet"]) == 0
    assert main(["info", cache, "--source", shelf]) == 0
    assert "shelf://photos now: 12 files; since it was extracted: unchanged" in capsys.readouterr().out
    first = next(iter(OBJECTS))
    OBJECTS[first] = (2, OBJECTS[first][1] + b" ")
    assert take_inventory(store, open_source(shelf)).changes.edited == [first.removeprefix("photos/")]


def test_mistakes_in_it_are_told_in_a_line(shelf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of source 'shelv'; did you mean 'shelf'"):
        open_source("shelv://photos")
    monkeypatch.setattr(Shelf, "list", lambda self, unit: iter([Entry("a", None), Entry("a", None)]))
    with pytest.raises(SourceError, match="shelf://photos lists 'a' twice; give each sample its own name"):
        Entries.of(Shelf(shelf))
    OBJECTS.clear()
    with pytest.raises(SourceError, match="shelf://photos holds no images; name another source"):
        check_source(Shelf(shelf))
