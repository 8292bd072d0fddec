"""Changed bytes on disk: a reader notices, or the byte is none that it uses. No wrong row comes back."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import ABOUT, Options, Tally, features_body, for_each, problems_of

TAP, DTYPE = "layer:avg", "float16"
_PER_JOB = 200


@dataclass(frozen=True)
class Target:
    """A cache of one shard and what is right in it."""

    cache: Path
    features: np.ndarray
    ids: np.ndarray
    shard: Path
    commit: Path
    used: dict[Path, list[tuple[int, int]]]
    """Where arrays lie in each shard; everything else is HDF5's own, which readers of a cache never look at."""


@dataclass(frozen=True)
class Change:
    """What to do to a file. ``bit`` counts from the first bit of the file."""

    file: Path
    kind: str
    bit: int
    length: int = 1


def try_flips(options: Options) -> list[Tally]:
    """Every byte of small files, then random changes of a larger shard."""
    small = make_target(options.scratch / "small", num_rows=6, num_features=16)
    rng = np.random.default_rng(0)
    tallies = []
    samples = small.cache / "samples"
    files = {
        "a small shard": small.shard,
        "a commit record": small.commit,
        "the sample table's shard": next(samples.glob("shards/*.h5")),
        "the sample table's commit record": next(samples.glob("commits/*.json")),
        "a spec record": next(small.cache.glob("features/*/spec.json")),
    }
    for name, file in files.items():
        step = (10 if file.suffix == ".json" else 34) if options.quick else 1
        size = file.stat().st_size
        changes = [Change(file, "flip", 8 * byte + int(rng.integers(8))) for byte in range(0, size, step)]
        tallies.append(_try(f"flipped bytes of {name} gave a wrong row or an unclear error", small, changes, options))
    large = make_target(options.scratch / "large", num_rows=4096, num_features=256 if options.quick else 512)
    number = 75 if options.quick else 10_000
    changes = [_random_change(large.shard, rng) for _ in range(number)]
    tallies.append(_try("flips, truncations, zeroed and swapped pages of a larger shard did", large, changes, options))
    return tallies


def make_target(folder: Path, *, num_rows: int, num_features: int) -> Target:
    """Write a cache through the store's own API."""
    from featurecache.specs import FeatureIdentity, PreprocessSpec
    from featurecache.store.folders import ShardFolder
    from featurecache.store.schemas import BackboneAbout
    from featurecache.store.store import FeatureStore

    rng = np.random.default_rng(1)
    ids = rng.integers(0, 256, (num_rows, 32), dtype=np.uint8)
    features = rng.normal(size=(num_rows, num_features)).astype(np.float16)
    store = FeatureStore.create(folder)
    store.samples.append(ids, [f"image {n}.png" for n in range(num_rows)], np.arange(num_rows))
    identity = FeatureIdentity(
        backbone="synthetic", architecture="0" * 64, weights="0" * 64, preprocess=PreprocessSpec()
    )
    feature_set = store.add_feature_set(identity, BackboneAbout(**ABOUT), TAP, DTYPE)
    body = features_body(feature_set, np.arange(num_rows))
    arrays = {"features": (DTYPE, features), "id": ("uint8", ids)}
    assert feature_set.folder.publish(f"{0:012d}", arrays, body, kind="features")
    (commit,) = feature_set.folder.commits()
    used = {}
    for shards in (feature_set.folder, ShardFolder(folder / "samples")):
        for published in shards.commits():
            arrays_of = published.shard.arrays.values()
            used[shards.path / "shards" / published.file_name] = [(a.offset, a.offset + a.nbytes) for a in arrays_of]
    path = feature_set.folder.path
    record = path / "commits" / f"{commit.key}.json"
    return Target(folder, features, ids, path / "shards" / commit.file_name, record, used)


def _try(promise: str, target: Target, changes: Sequence[Change], options: Options) -> Tally:
    tally = Tally(promise)
    jobs = [(target, list(changes[n : n + _PER_JOB])) for n in range(0, len(changes), _PER_JOB)]
    counts: Counter[str] = Counter()
    for (_, part), result in zip(jobs, for_each(jobs, _try_changes, jobs=options.jobs), strict=True):
        if "failed" in result:
            tally.add(problems_of(result), label=f"{part[0].kind} and the next {len(part)}")
            continue
        counts.update(result["value"]["counts"])
        for label in result["value"]["labels"]:
            tally.add([label] if label else [], label=promise.split(" gave")[0])
    tally.numbers = dict(counts)
    tally.notes.append(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return tally


def _try_changes(job: tuple[Target, list[Change]]) -> dict[str, Any]:
    """Change a copy of the cache, read it, change it back."""
    original, changes = job
    copy = original.cache.with_name(f"{original.cache.name}-{changes[0].bit}-{changes[0].file.name}")
    shutil.copytree(original.cache, copy)
    counts: Counter[str] = Counter()
    labels = []
    for change in changes:
        file = copy / change.file.relative_to(original.cache)
        right = file.read_bytes()
        wrong = apply(change, right)
        if wrong == right:
            outcome = "unchanged"
        else:
            file.write_bytes(wrong)
            outcome = _outcome(original, copy, change, wrong)
            file.write_bytes(right)
        counts[outcome.split(":")[0]] += 1
        bad = outcome.startswith(("WRONG", "UNCLEAR", "UNNOTICED"))
        labels.append(f"{outcome} ({change.kind} at byte {change.bit // 8})" if bad else "")
    shutil.rmtree(copy)
    return {"problems": [], "counts": counts, "labels": labels}


def _outcome(original: Target, copy: Path, change: Change, wrong: bytes) -> str:
    from featurecache.errors import StoreError

    try:
        problem = _read_all(original, copy)
    except StoreError as error:
        return "detected" if str(error) else "UNCLEAR: no message"
    except Exception as error:
        return f"UNCLEAR: {type(error).__name__}: {error}"
    if problem:
        return f"WRONG: {problem}"
    if change.file not in original.used:
        return "UNNOTICED: a changed record was read"
    if any(start <= change.bit // 8 < stop for start, stop in original.used[change.file]):
        return "UNNOTICED: a byte of an array"
    # Not used by our reader, but other programs read it: the digest of the whole file tells.
    noticed = not change.file.name.endswith(f"-{hashlib.sha256(wrong).hexdigest()[:16]}.h5")
    return "byte of HDF5 that readers never use, noticed by the file's digest" if noticed else "UNNOTICED: digest"


def _read_all(original: Target, copy: Path) -> str | None:
    """Read everything in both ways that there are; say what is wrong with what came back."""
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(copy)
    samples = store.samples
    if not np.array_equal(np.asarray(samples.ids), original.ids):
        return "sample ids"
    if samples.uris_of(range(len(samples))) != [f"image {n}.png" for n in range(len(original.ids))]:
        return "uris"
    if not np.array_equal(np.asarray(samples.sizes), np.arange(len(original.ids))):
        return "sizes"
    feature_set = store.find(tap=TAP)
    features = feature_set.open()
    rows = np.arange(len(original.ids))
    if not np.array_equal(features.rows, rows):
        return "rows"
    if not np.array_equal(features.read(rows), original.features):
        return "features read in order"
    if not np.array_equal(features.read(rows[::-1]), original.features[::-1]):
        return "features read in reverse"
    (commit,) = features.commits
    if not np.array_equal(feature_set.folder.open(commit).read("id"), original.ids):
        return "ids of the shard"
    return None


def _random_change(file: Path, rng: np.random.Generator) -> Change:
    size = file.stat().st_size
    kind = str(rng.choice(["flip", "truncate", "zero", "swap"], p=[0.7, 0.1, 0.1, 0.1]))
    return Change(file, kind, int(rng.integers(8 * size)), int(rng.integers(1, 8192)))


def apply(change: Change, data: bytes) -> bytes:
    """Return the changed content of a file."""
    content, byte = bytearray(data), change.bit // 8
    if change.kind == "flip":
        content[byte] ^= 1 << change.bit % 8
    elif change.kind == "truncate":
        del content[byte:]
    elif change.kind == "zero":
        stop = min(byte + change.length, len(content))
        content[byte:stop] = bytes(stop - byte)
    else:  # two pages change places, as after a wrong write
        page, other = byte // 4096 * 4096, (byte // 4096 + 1 + change.length) * 4096 % max(len(content) - 4096, 4096)
        other = other // 4096 * 4096
        first, second = bytes(content[page : page + 4096]), bytes(content[other : other + 4096])
        if len(first) == len(second):
            content[page : page + 4096], content[other : other + 4096] = second, first
    return bytes(content)
