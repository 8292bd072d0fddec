"""A source, a provider, an engine and a head of another package keep the contracts, and go all the way."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import outside
import pytest
from conftest import write_image

from featurecache.heads import registry
from featurecache.progress import Progress
from featurecache.sources.opening import SourceSpec
from featurecache.specs import BackboneRequest
from featurecache.testing import EngineContract, HeadContract, ProviderContract, SourceContract

pytestmark = pytest.mark.usefixtures("few_settings")

MODULE = "a_package_of_somebody"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, as an installer would put it into a folder of `sys.path`."""
    folder = tmp_path / "site-packages"
    described = folder / f"{MODULE}-1.0.dist-info"
    described.mkdir(parents=True)
    shutil.copy(outside.__file__, folder / f"{MODULE}.py")
    described.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
    described.joinpath("entry_points.txt").write_text(
        "".join(f"[{group}]\n{name} = {MODULE}:{cls}\n" for group, (name, cls) in outside.ENTRY_POINTS.items())
    )
    monkeypatch.syspath_prepend(folder)
    registry._classes.cache_clear()
    yield
    registry._classes.cache_clear()
    sys.modules.pop(MODULE, None)


def zipped(photos: Path, path: Path) -> str:
    with ZipFile(path, "w") as archive:
        for each in sorted(photos.rglob("*.png"), reverse=True):  # a source lists in any order
            archive.write(each, each.relative_to(photos).as_posix())
    return f"zipped://{path}"


@pytest.mark.usefixtures("installed")
class TestZipped(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        names = ("b.png", "a/1.png")
        images = {name: write_image(folder / name, (9, 9, 9), seed=len(name)).read_bytes() for name in names}
        return SourceSpec("zipped", zipped(folder, folder / "photos.zip")), images

    def change(self, spec: SourceSpec, name: str) -> None:
        folder = Path(spec.url.partition("://")[2]).parent
        write_image(folder / name, (99, 9, 9), seed=7)
        zipped(folder, folder / "photos.zip")


@pytest.mark.usefixtures("installed")
class TestProvider(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        return BackboneRequest(name="outside:small")


class TestTwice(EngineContract):
    def make_engine(self, progress: Progress) -> outside.Twice:
        return outside.Twice(progress)


class TestNearest(HeadContract):
    def make_head(self) -> outside.Nearest:
        return outside.Nearest()


@pytest.mark.usefixtures("installed")
def test_from_the_source_to_predictions_and_export(
    make_folder: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    source, cache, head = (
        zipped(make_folder(per_class=10), tmp_path / "photos.zip"),
        tmp_path / "c",
        tmp_path / "c/heads/h",
    )
    run = ["--backbone", "outside:small", "--engine", "twice", "--runtime", "torch", "--quiet", "--json"]
    status, out, err = call("extract", source, "--cache", cache, *run)
    assert (status, json.loads(out)["extracted"]) == (0, 30), err
    assert call("task", "add", cache, "colour", "--from-folders")[0] == 0
    status, out, err = call("train", cache, "--task", "colour", "--head", "nearest", "--save", "h", "--quiet", "--json")
    assert status == 0, err
    assert [each["head"] for each in json.loads(out)["results"]] == ["nearest"]
    status, out, err = call("predict", head, source, "--quiet", "--json")
    assert status == 0, err
    predictions = json.loads(out)["predictions"]
    assert len(predictions) == 30
    assert sum(each["label"] == each["path"].split("/")[0] for each in predictions) >= 27
    status, _, err = call("predict", head, source, "--quiet", "--engine", "twice", "--out", tmp_path / "t.csv")
    assert status == 0, err
    assert (tmp_path / "t.csv").read_text().count("\n") == 31
    status, out, err = call("export", head, "--out", tmp_path / "h.pt2", "--format", "torch", "--json")
    assert status == 0, err
    assert json.loads(out)["head"] == "nearest"
    assert Path(sys.modules[MODULE].__file__ or "").is_relative_to(tmp_path)
