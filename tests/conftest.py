"""Generated images and caches for all tests."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

if TYPE_CHECKING:
    from featurecache.store.store import FeatureStore

REPOSITORY = Path(__file__).resolve().parent.parent
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 50, 40)}
TINY = "python:tiny_backbones:tiny"
RUNTIME = ["--runtime", "torch", "--batch-size", "8", "--quiet"]

LONG = (
    "test_trials.py",
    "test_readme.py",
    "test_export.py",
    "test_search.py",
    "test_sweep.py",
    "test_trained_layers.py",
)
"""Files that take a minute, and go first: the other worker must not wait for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection() -> None:
    gc.disable()  # what is imported stays: looking for garbage there took a sixth of the time


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.load_profile("tests")

os.environ["FEATURECACHE_COMPILED"] = ""  # nothing is kept in the folder of the user
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for a hub must fail at once, here and elsewhere


# A shell's background jobs ignore it, and so would what tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def material() -> Path:
    """Folder of real images and weights."""
    return Path(os.environ.get("FEATURECACHE_MATERIAL", REPOSITORY.parent / "shared" / "material"))


def need(package: str) -> None:
    """Skip where a package is absent, without importing it: torchvision must come first where it is ailing."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def real_material() -> Path:
    if not material().is_dir():
        pytest.skip(f"no real images and weights at {material()}; set FEATURECACHE_MATERIAL")
    return material()


def features_body(tap: str, fingerprint: str, num_rows: int) -> dict[str, object]:
    """Return the least that a commit of features says."""
    ran = {"runtime": "torch", "device": "cpu", "machine": "any", "batch_size": 1, "versions": {}}
    return {"rows": [[0, num_rows]], "bad": [], "tap": tap, "fingerprint": fingerprint, "provenance": ran}


def content_id(content: str) -> np.ndarray:
    return np.frombuffer(content.encode().ljust(32, b"."), np.uint8)


def make_store(tmp_path: Path, files: dict[str, str], bad: Sequence[str] = ()) -> FeatureStore:
    """A cache that knows files by their content, without any pixels, and some that cannot be read."""
    from featurecache.store.listings import Listing
    from featurecache.store.store import FeatureStore
    from featurecache.text import TextColumn

    store = FeatureStore.create(tmp_path / "cache")
    ids = np.stack([content_id(content) for content in files.values()])
    rows = store.samples.append(ids, list(files), np.ones(len(files)))
    rows = np.concatenate([rows, np.full(len(bad), -1)])
    names, stamps = TextColumn.pack([*files, *bad]), np.zeros((len(rows), 4), np.int64)
    problems = dict.fromkeys(bad, "it is no image")
    store.listings.save(Listing(str((tmp_path / "src").resolve()), names, stamps, rows, problems))
    return store


def image_bytes(seed: int) -> bytes:
    """The bytes of a small noisy image."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tar_bytes(samples: dict[str, bytes], *, compressed: bool = False) -> bytes:
    """Samples named by tar and member, each with a label beside it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz" if compressed else "w") as file:
        for name, data in samples.items():
            member = name.partition("/")[2]
            for item, content in ((member, data), (str(Path(member).with_suffix(".cls")), b"7\n")):
                info = tarfile.TarInfo(item)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return target.getvalue()


def write_image(path: Path, colour: tuple[int, int, int], *, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Write a noisy image of one colour; the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.normal(0, 25, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_folder(folder: Path, *, per_class: int = 8, classes: tuple[str, ...] = tuple(COLOURS), seed: int = 0) -> Path:
    """Write a folder with one class per colour."""
    for number, label in enumerate(classes):
        for i in range(per_class):
            write_image(folder / label / f"{i:03d}.png", COLOURS[label], seed=seed + 1000 * number + i)
    return folder


def write_cache(root: Path, *taps: str, per_class: int = 20, task: str = "colour") -> Path:
    """Write the folder ``photos`` and its cache ``c`` with a task of the colours, and return the cache."""
    from featurecache.cli import main

    source, cache = write_folder(root / "photos", per_class=per_class), root / "c"
    extract = ["extract", str(source), "--cache", str(cache), "--backbone", TINY, *RUNTIME]
    assert main([*extract, *(word for tap in taps for word in ("--tap", tap))]) == 0
    assert main(["task", "add", str(cache), task, "--from-folders"]) == 0
    return cache


def copied(cache: Path, folder: Path) -> Path:
    """Copy a cache and the images beside it into a folder, and return the copy."""
    shutil.copytree(cache.parent, folder, dirs_exist_ok=True)
    return folder / cache.name


@contextmanager
def searching_few_settings() -> Iterator[None]:
    """Search at most three settings of each head, on folds that are not repeated: what a file tests is not the choice.

    Other processes search these settings too, and repeat their folds: a test of equality with them repeats them here.
    Perceptrons take a third of the steps.
    """
    from featurecache.evaluation import selection
    from featurecache.heads import registry
    from featurecache.heads.gradient import stacked_training
    from featurecache.heads.head import NamedHead, Setting

    def few(head: NamedHead) -> NamedHead:
        def settings(n_samples: int) -> list[Setting]:
            every = head.settings_for(n_samples)
            return every[:: -(-len(every) // 3)]

        return NamedHead(head.name, head.estimator, settings)

    with pytest.MonkeyPatch.context() as patch:
        kinds = ("classification", "multilabel", "regression")
        heads = [(kind, registry.find_head(name, kind=kind)) for kind in kinds for name in registry._names(kind)]
        patch.setattr(registry, "_REGISTERED", {(kind, head.name): few(head) for kind, head in heads})
        patch.setattr(selection, "_MAX_REPEATS", 1)
        patch.setattr(stacked_training, "_MIN_STEPS", 100)
        yield


@pytest.fixture(scope="module")
def few_settings() -> Iterator[None]:
    with searching_few_settings():
        yield


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with one class per colour below the folder of the test."""

    def make(name: str = "photos", **options: Any) -> Path:
        return write_folder(tmp_path / name, **options)

    return make


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process and return status, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        from featurecache.cli import main

        try:
            status = main([str(arg) for arg in args])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def labelled_cache(make_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path, Path]]:
    """Make a folder, its cache, and a table with one more column: what a function says of the number of a file."""

    def make(**column: Callable[[int], object]) -> tuple[Path, Path, Path]:
        from featurecache.cli import main

        ((name, say),) = column.items()
        source, cache, table = make_folder(per_class=20), tmp_path / "c", tmp_path / "labels.csv"
        rows = [f"{p.relative_to(source)},{p.parent.name},{say(int(p.stem))}" for p in sorted(source.rglob("*.png"))]
        table.write_text("\n".join([f"path,label,{name}", *rows]))
        assert main(["extract", str(source), "--cache", str(cache), "--backbone", TINY, *RUNTIME]) == 0
        return source, cache, table

    return make


def pretend_other_torch(store: FeatureStore) -> None:
    """Rewrite the records as if another torch had made the features."""
    from featurecache.hashing import canonical_json, digest_bytes

    for path in store.path.glob("features/*/*/*/commits/*.json"):
        record = json.loads(path.read_text())
        record["body"]["provenance"]["versions"]["torch"] = "1.0"
        del record["digest"]
        record["digest"] = digest_bytes(canonical_json(record).encode())
        path.write_text(canonical_json(record))
