"""Make the archive of the current cache format: a small cache, and what must be read from it for ever after.

    python tests/store/archives/make.py

Writes ``format-MAJOR.MINOR/`` beside this file. Run it once when the format's version has been raised, and commit the
folder; an archive that exists is never written again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVES = Path(__file__).resolve().parent
sys.path[:0] = [str(ARCHIVES.parents[2]), str(ARCHIVES.parents[1])]  # the package, and the networks that tests use

BACKBONE = "python:tiny_backbones:tiny"
ROOT = "/photos"
"""Where the archive says that its images lay."""


def main() -> int:
    """Make the archive."""
    from featurecache.store.format_file import FORMAT_VERSION

    archive = ARCHIVES / "format-{}.{}".format(*FORMAT_VERSION)
    if archive.exists():
        print(f"{archive.name} is there already; raise FORMAT_VERSION first", file=sys.stderr)  # noqa: T201
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        write_photos(photos)
        fill(archive / "cache", photos)
    (archive / "expected.json").write_text(json.dumps(contents(archive / "cache"), indent=1, sort_keys=True) + "\n")
    return 0


def write_photos(folder: Path) -> None:
    """Write ten images of two classes, a copy of one, and a broken one."""
    from PIL import Image

    for number in range(10):
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 100, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(150 * (number % 2))).save(path)
    (folder / "dark" / "copy of 0.png").write_bytes((folder / "dark" / "0.png").read_bytes())
    (folder / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")


def fill(cache: Path, photos: Path) -> None:
    """Make a cache with every kind of thing in it: types, taps, bad rows, a task, heads, leftovers of a killed run."""
    import featurecache as fc
    from featurecache.deployment.kept import keep_head
    from featurecache.store.convert import convert_features

    settings = {"runtime": "torch", "batch_size": 4, "shard_rows": 6}
    small = {"resize": 8, "crop": 8}  # another fingerprint, whose maps are few bytes
    sets = (("float32", "stem:avg", {}), ("float16", "default", {}), ("float32", "body:none", small))
    for dtype, tap, preprocess in sets:
        made = fc.ExtractionSettings(dtype=dtype, **settings)
        fc.extract(photos, cache, backbone=BACKBONE, taps=[tap], preprocess=preprocess, settings=made)
    store = fc.FeatureStore.open(cache)
    for dtype in ("bfloat16", "int8"):
        convert_features(store, store.find(tap="stem:avg", dtype="float32"), dtype)
    task = store.add_task("brightness", fc.labels_from_folders(photos))
    trained_on = [store.find(tap="stem:avg", dtype="float32")]
    for name in ("logistic", "knn"):
        keep_head(store, name, fc.train_heads(store, task, trained_on, [name], n_jobs=1).best)
    move_to_nowhere(store, photos)
    (cache / "samples" / "commits" / ".000000000099.json.0123456789abcdef.partial").write_bytes(b'{"a killed wri')


def move_to_nowhere(store: Any, photos: Path) -> None:
    """Let the source lie at `ROOT`, so that the archive knows nothing of the machine that it was made on."""
    from dataclasses import replace

    listing = store.listings.load(photos)
    stamps = np.arange(listing.stamps.size, dtype=np.int64).reshape(listing.stamps.shape)
    for path in sorted((store.path / "sources").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    store.listings.save(replace(listing, root=ROOT, stamps=stamps))


def contents(cache: Path, *, heads: bool = True) -> dict[str, Any]:
    """Return everything that readers see in a cache, as plain JSON values; numbers of features as hexadecimal bytes."""
    from featurecache.deployment.saved import open_head
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    (listing,) = store.listings.all()
    task = store.task("brightness")
    features = {}
    for feature_set in store.feature_sets():
        opened = feature_set.open()
        good = opened.rows[opened.usable(opened.rows)]
        features[f"{feature_set.fingerprint}/{feature_set.tap}/{feature_set.dtype}"] = {
            "rows": good.tolist(),
            "values": [value.astype(value.dtype.newbyteorder("<")).tobytes().hex() for value in opened.read(good)],
            "shape": list(opened.sample_shape),
            "bad": {str(row): list(problem) for row, problem in opened.bad.items()},
        }
    inputs = np.random.default_rng(0).random((6, 8), np.float32)
    return {
        "ids": [identity.tobytes().hex() for identity in np.asarray(store.samples.ids)],
        "uris": store.samples.uris_of(range(len(store.samples))),
        "sizes": np.asarray(store.samples.sizes).tolist(),
        "view": {"root": listing.root, "rows": dict(zip(listing.paths, listing.rows.tolist(), strict=True))},
        "features": features,
        "task": {
            "classes": task.classes,
            "labels": {
                i.tobytes().hex(): [int(k), int(s)] for i, k, s in zip(task.ids, task.labels, task.splits, strict=True)
            },
        },
        "heads": {
            name: open_head(cache / "heads" / name).probabilities(inputs).tolist()
            for name in (store.head_names() if heads else ())
        },
    }


if __name__ == "__main__":
    sys.exit(main())
