"""Tars that are read and computed in one pass, as `publish`, `gc` and `hostile` try them: each is a block."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import BACKBONE

PATTERN = "p-*.tar"


def write_tars(photos: Path, folder: Path, *, count: int) -> str:
    """Write the images of a folder into tars, copies into neighbours, and return the pattern of the tars."""
    folder.mkdir(parents=True)
    for number in range(count):
        with tarfile.open(folder / f"p-{number}.tar", "w") as tar:
            for path in sorted(photos.rglob("*.png"))[number::count]:
                tar.add(path, path.relative_to(photos))
    return str(folder / PATTERN)


def extract_blocks(pattern: str, cache: Path, *, shard_rows: int = 3) -> int:
    """Extract, as the command line does; each tar is a block, is written down by itself, and is settled at once."""
    from featurecache.cli import main
    from featurecache.extraction import blocks, unit_scan
    from featurecache.sources import file_units

    blocks._BLOCK_BYTES, unit_scan._MOST_UNITS, file_units.UNSETTLED_NS = 1, 1, -(10**18)
    numbers = ["--batch-size", "4", "--shard-rows", str(shard_rows), "--jobs", "1", "--max-bad", "1"]
    command = ["extract", pattern, "--cache", str(cache), "--backbone", BACKBONE, "--runtime", "torch", "--quiet"]
    return main([*command, *numbers])


def features_by_id(cache: Path) -> dict[str, bytes]:
    """Return the stored bytes of every good sample by its id."""
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    features = store.find(dtype="float16").open()
    good = features.rows[features.usable(features.rows)]
    ids = np.asarray(store.samples.ids)[good]
    return {key.tobytes().hex(): value.tobytes() for key, value in zip(ids, features.read(good), strict=True)}


def problems_of_blocks(cache: Path, pattern: str, truth: dict[str, bytes]) -> list[str]:
    """Return what is wrong with a cache whose last writer said that all was done."""
    from featurecache.store.listings import UnitListing
    from featurecache.store.store import FeatureStore
    from featurecache.store.verify import verify

    store = FeatureStore.open(cache)
    listing = store.listings.load(pattern)
    if not isinstance(listing, UnitListing):
        return ["no listing by units"]
    problems = [f"{problem.where} {problem.what}" for problem in verify(store).problems]
    features, samples = store.find().open(), ids_in_tars(pattern)
    if listing.row_of.keys() != samples.keys():
        problems.append(f"{len(listing.row_of)} of {len(samples)} members are listed")
    ids = np.asarray(store.samples.ids)
    rows = {name: row for name, row in listing.row_of.items() if ids[row].tobytes().hex() != samples.get(name)}
    problems += [f"{len(rows)} members have the rows of others"] if rows else []
    missing = len(listing.held.difference(features.held))
    problems += [f"{missing} rows are listed and not computed"] if missing else []
    wrong = sum(truth[key] != value for key, value in features_by_id(cache).items())
    return [*problems, *([f"{wrong} rows are wrong"] if wrong else [])]


def ids_in_tars(pattern: str) -> dict[str, str]:
    """Return the id of each member of some tars, as a plain loop finds it."""
    from hashlib import sha256

    found = dict[str, str]()
    for path in sorted(Path(pattern).parent.glob(PATTERN)):
        with tarfile.open(path) as tar:
            for member in tar:
                content: Any = tar.extractfile(member)
                found[f"{path.name}/{member.name}"] = sha256(content.read()).hexdigest()
    return found


# As a kind of thing that has a name: the listing of all tars, and what is computed of them.


def write_variant(place: Path, variant: int) -> int:
    """Extract two tars in one pass; variant 1 extracts two more, which come by links, as whole as they are."""
    if not (place / "tars").exists():
        write_tars(place / "photos", place / "tars", count=4)
        (place / "late").mkdir()
        for number in (2, 3):
            (place / "tars" / f"p-{number}.tar").rename(place / "late" / f"p-{number}.tar")
    for late in sorted((place / "late").iterdir()) if variant else []:
        with suppress(FileExistsError):  # the other writer was faster
            os.link(late, place / "tars" / late.name)
    with redirect_stdout(io.StringIO()):
        return extract_blocks(str(place / "tars" / PATTERN), place / "blocks.cache")


def read_variant(place: Path) -> int:
    """Return which of them the listing names; all that it names must be computed, and right."""
    from featurecache.store.store import FeatureStore

    listing: Any = FeatureStore.open(place / "blocks.cache").listings.load(str(place / "tars" / PATTERN))
    names = {name.partition("/")[0] for name in listing.paths}
    problems = problems_of_blocks(
        place / "blocks.cache", str(place / "tars" / PATTERN), features_by_id(place / "cache")
    )
    # Tars that came after this listing are for the next one.
    problems = [problem for problem in problems if "members are listed" not in problem or len(names) == 4]
    if problems or names not in ({"p-0.tar", "p-1.tar"}, {f"p-{number}.tar" for number in range(4)}):
        raise ValueError("; ".join(problems) or f"{sorted(names)} are listed")
    return int(len(names) == 4)
