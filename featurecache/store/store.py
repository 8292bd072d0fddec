"""A cache folder: its format, samples, listings, feature sets, tasks and heads."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.atomic import is_partial, make_folder, publish_bytes, publish_once
from featurecache.errors import (
    CorruptError,
    FormatVersionError,
    RequestError,
    StoreError,
    TaskError,
    UnknownNameError,
    shortened,
)
from featurecache.hashing import canonical_json, digest_json
from featurecache.records import encode_record, parse_json, read_record, read_small_file
from featurecache.specs import FeatureIdentity
from featurecache.store.feature_sets import FeatureSet, choose, feature_set_in, folder_of_tap, prefer_wider, read_spec
from featurecache.store.features import Features
from featurecache.store.folders import ShardFolder, find_strange
from featurecache.store.joining import build_task
from featurecache.store.labels import FolderLabels, TableLabels
from featurecache.store.listings import Listing, Listings
from featurecache.store.samples import SampleTable
from featurecache.store.schemas import (
    SAMPLES,
    SOURCE,
    TASK,
    RequestBody,
    ResultBody,
    TypeBody,
    check_body,
    features_schema,
)
from featurecache.store.tasks import Task, load_task, save_task

FORMAT_NAME = "featurecache"
FORMAT_VERSION = (1, 0)
_NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class FeatureStore:
    """A cache folder. Use `FeatureStore.open` or `FeatureStore.create`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path, *, strange: bool = False) -> FeatureStore:
        """Open an existing cache.

        Parameters
        ----------
        path : path
            Its folder.
        strange : bool
            Open it even if it contains links, devices or pipes: for `verify`, which names them and reads no further.

        Raises
        ------
        StoreError
            There is no cache there.
        FormatVersionError
            It was written in a newer format.
        CorruptError
            It contains what no cache contains.
        """
        path = Path(path)
        if not path.is_dir():
            raise StoreError(f"no cache at {path}: there is no such folder; make one with `featurecache extract`")
        marker = path / "FORMAT.json"
        try:
            data = read_small_file(marker, max_bytes=1 << 20)
        except FileNotFoundError:
            raise StoreError(
                f"{path} is not a featurecache cache (it has no FORMAT.json); name another folder"
            ) from None
        try:
            content = parse_json(data, marker)
        except CorruptError:
            raise CorruptError(f"{marker} is damaged; restore it from a copy of this or any other cache") from None
        _check_format(content, path)
        if not strange:
            for place, what in find_strange(path):
                raise CorruptError(f"{place} {what}; remove it, and see `featurecache verify {path}`")
        return cls(path)

    @classmethod
    def create(cls, path: str | Path) -> FeatureStore:
        """Open the cache at ``path``, or make an empty one where there is nothing yet."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file, a cache is a folder; name another place")
        if path.is_dir() and any(not is_partial(entry) for entry in path.iterdir()):
            return cls.open(path)
        try:
            make_folder(path)
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            raise StoreError(f"cannot make a cache at {path}: {error.strerror}; name another place") from None
        marker = {"format": FORMAT_NAME, "version": list(FORMAT_VERSION), "required": [], "optional": []}
        publish_once(path / "FORMAT.json", (canonical_json(marker) + "\n").encode())
        return cls.open(path)

    @cached_property
    def samples(self) -> SampleTable:
        """Every input ever seen."""
        return SampleTable(ShardFolder(self.path / "samples", SAMPLES))

    @property
    def listings(self) -> Listings:
        """What each source holds today."""
        return Listings(self.path / "sources")

    @property
    def heads_path(self) -> Path:
        """Folder of the saved heads."""
        return self.path / "heads"

    # Feature sets

    def feature_sets(self) -> list[FeatureSet]:
        """Everything that is cached, sorted by backbone, tap and type."""
        return sorted(self._feature_sets(), key=lambda s: (s.identity.backbone, s.fingerprint, s.tap, s.dtype))

    def find(
        self,
        *,
        tap: str | None = None,
        backbone: str | None = None,
        fingerprint: str | None = None,
        dtype: str | None = None,
        views: int | None = None,
        but_not: str | None = None,
    ) -> FeatureSet:
        """Return the one feature set that fits; say what to add when none or several do.

        Of features that are there plain and as views, those are meant that were asked for by ``views``, else the plain.
        Of those in several number types, the ones with most rows, and of these the widest type; ``but_not`` names one
        that is not meant unless there is no other.
        """
        sets = self.feature_sets()
        if not sets:
            raise StoreError(f"{self.path} holds no features yet; run `featurecache extract`")
        fitting = self.select_sets(tap=tap, backbone=backbone, fingerprint=fingerprint, dtype=dtype, views=views)
        if len(fitting) > 1 and views is None:
            fitting = [s for s in fitting if s.num_views is None] or fitting
        wider = prefer_wider([s for s in fitting if s.dtype != but_not] or fitting)
        if len(wider) > 1:
            choices = "; ".join(str(s) for s in fitting)
            raise RequestError(
                f"{len(fitting)} feature sets fit, choose by tap, backbone, fingerprint or dtype: {choices}"
            )
        return wider[0]

    def select_sets(
        self,
        *,
        tap: str | None = None,
        backbone: str | None = None,
        fingerprint: str | None = None,
        dtype: str | None = None,
        views: int | None = None,
    ) -> list[FeatureSet]:
        """Return the feature sets that fit; a name that fits none is an error that lists the known ones.

        ``views`` is the number of views of each sample, 0 for plain features only.
        """
        wanted = {"backbone": backbone, "tap": tap, "dtype": dtype, "fingerprint": fingerprint}
        return choose(self.feature_sets(), wanted, views)

    def features(
        self,
        tap: str | None = None,
        *,
        backbone: str | None = None,
        fingerprint: str | None = None,
        dtype: str | None = None,
        views: int | None = None,
    ) -> Features:
        """Return the features that fit, as a lazy array; each argument is needed only where there is a choice.

        Plain features where they are there, unless views are asked for: ``views=8``.
        """
        return self.find(tap=tap, backbone=backbone, fingerprint=fingerprint, dtype=dtype, views=views).open()

    def add_feature_set(self, identity: FeatureIdentity, about: dict[str, Any], tap: str, dtype: str) -> FeatureSet:
        """Make room for features of one tap; harmless when it is there already."""
        folder = self.path / "features" / identity.fingerprint
        make_folder(folder)
        publish_once(folder / "spec.json", encode_record("spec", {"identity": identity.to_json(), "about": about}))
        return feature_set_in(folder / folder_of_tap(tap) / dtype, identity, about, self.samples, self.listings)

    def _feature_sets(self) -> Iterator[FeatureSet]:
        for spec in sorted((self.path / "features").glob("*/spec.json")):
            identity, about = read_spec(spec)
            for commits in sorted(spec.parent.glob("*/*/commits")):
                if ShardFolder(commits.parent).records():
                    yield feature_set_in(commits.parent, identity, about, self.samples, self.listings)

    def feature_set_at(self, place: PurePosixPath) -> FeatureSet | None:
        """Return the feature set whose shards lie, or would lie, at a place in this cache."""
        spec = self.path / place.parents[1] / "spec.json"
        if place.parts[0] != "features" or len(place.parts) != 4 or not spec.is_file():
            return None
        return feature_set_in(self.path / place, *read_spec(spec), self.samples, self.listings)

    def shard_folder_at(self, place: PurePosixPath) -> ShardFolder | None:
        """Return the folder of shards at a place in this cache, with the schema that belongs there."""
        kinds = {("samples", 1): SAMPLES, ("sources", 2): SOURCE, ("tasks", 2): TASK}
        schema = kinds.get((place.parts[0], len(place.parts)))
        if place.parts[0] == "features" and len(place.parts) == 4:
            schema = features_schema(place.name)
        return None if schema is None else ShardFolder(self.path / place, schema)

    # Remembered requests: lets an unchanged folder be recognised without loading the backbone

    def remember_request(self, digest: str, fingerprint: str, taps: list[str]) -> None:
        """Note which feature sets a request led to."""
        folder = self.path / "requests"
        make_folder(folder)
        publish_once(folder / f"{digest}.json", encode_record("request", {"fingerprint": fingerprint, "taps": taps}))

    def recall_request(self, digest: str) -> tuple[str, list[str]] | None:
        """Return the fingerprint and taps that a request led to, if it was made before."""
        try:
            record = read_record(self.path / "requests" / f"{digest}.json", "request")
            check_body(record, RequestBody, "a request")
        except (FileNotFoundError, CorruptError):
            return None  # a note that saves time, nothing more
        return record["fingerprint"], record["taps"]

    # Remembered types: what ``--dtype auto`` stands for, so that all writers store one type

    def remember_type(self, fingerprint: str, tap: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep which type was chosen for a tap, and return what is kept: the first choice stays.

        Parameters
        ----------
        fingerprint, tap : str
            Of plain features; those of their views have the same type.
        record : mapping
            ``dtype``, ``rows`` (on how many the error was measured) and ``error`` (of float16, beside the spread of the
            features; None where they do not fit).
        """
        path = self._type_path(fingerprint, tap)
        make_folder(path.parent)
        data = encode_record("type", dict(record))
        publish_once(path, data)
        if (kept := self.recall_type(fingerprint, tap)) is not None:
            return kept
        publish_bytes(path, data)  # a damaged record is replaced
        return dict(record)

    def recall_type(self, fingerprint: str, tap: str) -> dict[str, Any] | None:
        """Return what `remember_type` kept, if anything that can be read is."""
        try:
            record = read_record(self._type_path(fingerprint, tap), "type")
            check_body(record, TypeBody, "a type")
        except (FileNotFoundError, CorruptError):
            return None  # it is measured again
        return record

    def _type_path(self, fingerprint: str, tap: str) -> Path:
        return self.path / "types" / f"{digest_json('type', 1, {'fingerprint': fingerprint, 'tap': tap})}.json"

    # Remembered results: what a head did on features and labels that are named by content

    def remember_result(self, digest: str, row: Mapping[str, Any]) -> None:
        """Keep how a head did.

        Parameters
        ----------
        digest : str
            Of everything that the row depends on.
        row : mapping
            Plain finite values by column.
        """
        folder = self.path / "results"
        make_folder(folder)
        # Not once: a damaged record is replaced by what was computed in its place.
        publish_bytes(folder / f"{digest}.json", encode_record("result", {"row": dict(row)}))

    def recall_result(self, digest: str) -> dict[str, Any] | None:
        """Return what is kept under this digest, if anything that can be read is."""
        try:
            record = read_record(self.path / "results" / f"{digest}.json", "result")
            check_body(record, ResultBody, "a result")
        except (FileNotFoundError, CorruptError):
            return None  # it is computed again
        return dict(record["row"])

    # Tasks

    def add_task(
        self,
        name: str,
        labels: FolderLabels | TableLabels,
        *,
        allow_missing: bool = False,
        replace: bool = False,
        random_state: int = 0,
    ) -> Task:
        """Join labels to the samples of this cache and keep them as a task.

        Parameters
        ----------
        name : str
            Name of the task.
        labels : FolderLabels or TableLabels
            From `labels_from_folders` or `labels_from_csv`.
        allow_missing : bool
            Skip labels of files that are not in the cache instead of refusing them.
        replace : bool
            Replace a task of the same name.
        random_state : int
            Seed of the split that is made where the labels bring none.
        """
        check_name("task", name)
        folder = ShardFolder(self.path / "tasks" / name, TASK)
        if random_state < 0:
            raise RequestError(f"the seed must not be negative, got {random_state}")
        previous = load_task(name, folder, self.samples)
        if previous is not None and not replace:
            raise TaskError(f"task {name!r} exists already in {self.path}; choose another name or pass --replace")
        task = build_task(
            name,
            labels,
            samples=self.samples,
            listings=self._listings_of(labels.root),
            allow_missing=allow_missing,
            random_state=random_state,
            previous=previous,
        )
        save_task(folder, task)
        return task

    def task(self, name: str) -> Task:
        """Return a task by name."""
        task = None
        if _NAME.fullmatch(name):
            task = load_task(name, ShardFolder(self.path / "tasks" / name, TASK), self.samples)
        if task is None:
            advice = f"make it with `featurecache task add {self.path} {name} --from-folders`"
            raise UnknownNameError("task", name, self.task_names(), advice=advice)
        return task

    def task_names(self) -> list[str]:
        """Names of all tasks."""
        return sorted({path.parents[1].name for path in (self.path / "tasks").glob("*/commits/[0-9]*.json")})

    def head_names(self) -> list[str]:
        """Names of all saved heads."""
        records = self.heads_path.glob("*/head.json")
        return sorted(record.parent.name for record in records if not is_partial(record.parent))

    def _listings_of(self, root: Path | None) -> list[Listing]:
        if root is None:
            listings = self.listings.all()
        else:
            listing = self.listings.load(root)
            listings = [listing] if listing else []
        if not listings:
            place = "any source" if root is None else str(root)
            raise StoreError(f"{self.path} holds no samples from {place}; run `featurecache extract` on it first")
        return listings


def check_name(kind: str, name: str) -> None:
    """Refuse a name that could not be a plain folder name everywhere."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} cannot be the name of a {kind}; use letters, digits, '.', '_' and '-'")


def _check_format(marker: dict[str, Any], path: Path) -> None:
    if marker.get("format") != FORMAT_NAME:
        raise StoreError(
            f"{path} is not a featurecache cache (FORMAT.json says {shortened(repr(marker.get('format')))}); "
            "name another folder"
        )
    version, required = marker.get("version"), marker.get("required", [])
    if not isinstance(version, list) or not version or version[0] != FORMAT_VERSION[0] or required:
        raise FormatVersionError(
            f"{path} has cache format {shortened(version)} requiring {shortened(required)}; this release "
            f"reads {list(FORMAT_VERSION)}. "
            "Upgrade featurecache"
        )
