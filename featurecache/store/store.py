"""A cache folder: its format, samples, listings, feature sets, tasks and heads."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from featurecache.atomic import is_partial, make_folder, publish_once
from featurecache.display import html_table
from featurecache.errors import CorruptError, RequestError, StoreError, TaskError, UnknownNameError, command_line
from featurecache.records import encode_record
from featurecache.specs import FeatureIdentity
from featurecache.store.feature_sets import FeatureSet, choose, feature_set_in, folder_of_tap, prefer_wider, read_spec
from featurecache.store.features import Features
from featurecache.store.folders import ShardFolder, find_strange
from featurecache.store.format_file import read_format, write_format
from featurecache.store.history import History, predictions_of
from featurecache.store.labels import FolderLabels, TableLabels
from featurecache.store.listings import Listing, Listings
from featurecache.store.naming import check_name, is_name
from featurecache.store.notes import Notes
from featurecache.store.result_schemas import HISTORY
from featurecache.store.samples import SampleTable
from featurecache.store.schemas import SAMPLES, SOURCE, TASK, UNITS, BackboneAbout, features_schema
from featurecache.store.task_builder import build_task
from featurecache.store.tasks import Task, load_task, save_task
from featurecache.store.unit_listings import PARTS
from featurecache.wording import counted

_CANNOT_MAKE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}


class FeatureStore(Notes):
    """A cache folder. Use `FeatureStore.open` or `FeatureStore.create`.

    Attributes
    ----------
    listings : Listings
        What each source holds today.
    heads_path : Path
        Folder of the saved heads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listings = Listings(path / "sources")
        self.heads_path = path / "heads"

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
        read_format(path)
        if not strange:
            for strange_path, what in find_strange(path):
                raise CorruptError(f"{strange_path} {what}; remove it, and see `{command_line('verify', path)}`")
        return cls(path)

    @classmethod
    def create(cls, path: str | Path) -> FeatureStore:
        """Open the cache at ``path``; make an empty one where there is nothing yet."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file, a cache is a folder; name another place")
        # What an interrupted creation left is no content.
        if path.is_dir() and any(not is_partial(entry) for entry in path.iterdir()):
            return cls.open(path)
        try:
            make_folder(path)
        except OSError as error:
            if error.errno not in _CANNOT_MAKE:
                raise
            raise StoreError(f"cannot make a cache at {path}: {error.strerror}; name another place") from None
        write_format(path)
        return cls.open(path)

    def __repr__(self) -> str:
        sets, tasks = self.feature_sets(), self.task_names()
        held = f"{counted(len(self.samples), 'sample')}, {counted(len(sets), 'feature set')}"
        return f"FeatureStore({str(self.path)!r}: {held}, tasks {tasks})"

    def _repr_html_(self) -> str:
        columns = ["backbone", "tap", "type", "views", "rows", "fingerprint"]
        rows = [
            (s.identity.backbone, s.tap, s.dtype, s.num_views or "", len(s.open()), s.fingerprint[:12])
            for s in self.feature_sets()
        ]
        return html_table(repr(self), columns, rows)

    @cached_property
    def samples(self) -> SampleTable:
        """Every input ever seen."""
        return SampleTable(ShardFolder(self.path / "samples", SAMPLES))

    def feature_sets(self) -> list[FeatureSet]:
        """Everything that is cached, sorted by backbone, tap and type."""
        found = []
        for spec in sorted((self.path / "features").glob("*/spec.json")):
            identity, about = read_spec(spec)
            for commits in sorted(spec.parent.glob("*/*/commits")):
                # A run that was killed before its first commit left a folder without features.
                if ShardFolder(commits.parent).records():
                    found.append(feature_set_in(commits.parent, identity, about, self.samples, self.listings))
        return sorted(found, key=lambda s: (s.identity.backbone, s.fingerprint, s.tap, s.dtype))

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

        Of features in several number types, the ones with most rows are returned, and of these the widest type.

        Parameters
        ----------
        tap, backbone, fingerprint, dtype : str, optional
            As for `select_sets`.
        views : int, optional
            Number of views of each sample; plain features are preferred where it is left out.
        but_not : str, optional
            A number type to be returned only if there is no other.
        """
        sets = self.feature_sets()
        if not sets:
            raise StoreError(f"{self.path} holds no features yet; run `featurecache extract`")
        fitting = self.select_sets(tap=tap, backbone=backbone, fingerprint=fingerprint, dtype=dtype, views=views)
        if len(fitting) > 1 and views is None:
            # Views are meant only where they are asked for.
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

        Parameters
        ----------
        tap, backbone, fingerprint, dtype : str, optional
            The node of a tap will do, and the beginning of a fingerprint.
        views : int, optional
            Number of views of each sample, 0 for plain features only.
        """
        names = {"backbone": backbone, "tap": tap, "dtype": dtype, "fingerprint": fingerprint}
        return choose(self.feature_sets(), names, views)

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

        Parameters
        ----------
        tap, backbone, fingerprint, dtype, views
            As for `find`: plain features where they are there, views with ``views=8``.
        """
        return self.find(tap=tap, backbone=backbone, fingerprint=fingerprint, dtype=dtype, views=views).open()

    def add_feature_set(self, identity: FeatureIdentity, about: BackboneAbout, tap: str, dtype: str) -> FeatureSet:
        """Make the folder for features of one tap, if it is not there yet.

        Parameters
        ----------
        identity, about, tap, dtype
            See `FeatureSet`.
        """
        folder = self.path / "features" / identity.fingerprint
        make_folder(folder)
        body = {"identity": identity.to_json(), "about": msgspec.to_builtins(about)}
        # The first record stays: the fingerprint is of the identity, and the rest is for people.
        publish_once(folder / "spec.json", encode_record("spec", body))
        return feature_set_in(folder / folder_of_tap(tap) / dtype, identity, about, self.samples, self.listings)

    def feature_set_at(self, folder: PurePosixPath) -> FeatureSet | None:
        """Return the feature set whose shards lie, or would lie, in a folder of this cache, by its relative path."""
        spec = self.path / folder.parents[1] / "spec.json"
        if folder.parts[0] != "features" or len(folder.parts) != 4 or not spec.is_file():
            return None
        return feature_set_in(self.path / folder, *read_spec(spec), self.samples, self.listings)

    def shard_folder_at(self, folder: PurePosixPath) -> ShardFolder | None:
        """Return a folder of shards by its relative path, with the schema that belongs there."""
        kinds = {("samples", 1): SAMPLES, ("sources", 2): SOURCE, ("tasks", 2): TASK, ("history", 2): HISTORY}
        schema = kinds.get((folder.parts[0], len(folder.parts)))
        if folder.parts[0] == "sources" and folder.parts[2:] == (PARTS,):
            schema = UNITS
        if folder.parts[0] == "features" and len(folder.parts) == 4:
            schema = features_schema(folder.name)
        return None if schema is None else ShardFolder(self.path / folder, schema)

    def add_task(
        self,
        name: str,
        labels: FolderLabels | TableLabels,
        *,
        allow_missing: bool = False,
        replace: bool = False,
        alike: Mapping[int, str] | None = None,
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
        alike : mapping of int to str, optional
            Group of rows that are alike, such as near-copies, besides the groups that the labels bring; other rows are
            each by itself.
        random_state : int
            Seed of the split that is made where the labels bring none.
        """
        check_name("task", name)
        folder = ShardFolder(self.path / "tasks" / name, TASK)
        if random_state < 0:
            raise RequestError(f"the seed must not be negative, got {random_state}")
        # Read even where it is replaced: its samples keep their splits.
        previous = load_task(name, folder, self.samples)
        if previous is not None and not replace:
            raise TaskError(f"task {name!r} exists already in {self.path}; choose another name or pass --replace")
        task = build_task(
            name,
            labels,
            samples=self.samples,
            listings=self._listings_of(labels.root),
            allow_missing=allow_missing,
            alike=alike,
            random_state=random_state,
            previous=previous,
        )
        save_task(folder, task)
        return task

    def task(self, name: str) -> Task:
        """Return a task by name."""
        folder = ShardFolder(self.path / "tasks" / name, TASK)
        # A name that is a path could lead out of the cache.
        task = load_task(name, folder, self.samples) if is_name(name) else None
        if task is None:
            advice = f"make it with `{command_line('task', 'add', self.path, name, '--from-folders')}`"
            raise UnknownNameError("task", name, self.task_names(), advice=advice)
        return task

    def only_task(self, name: str | None = None) -> Task:
        """Return a task by name; without one, the only task that there is.

        Parameters
        ----------
        name : str, optional

        Raises
        ------
        RequestError
            There are several tasks, or none.
        """
        if name is not None:
            return self.task(name)
        names = self.task_names()
        if len(names) == 1:
            return self.task(names[0])
        if names:
            raise RequestError(f"{self.path} holds {len(names)} tasks; name one with --task: {', '.join(names)}")
        add = command_line("task", "add", self.path, "NAME", "--from-folders")
        raise RequestError(f"{self.path} holds no task; make one with `{add}`")

    def history(self, name: str) -> History:
        """Return the trainings on a task."""
        check_name("task", name)
        return History(ShardFolder(self.path / "history" / name, HISTORY))

    def predictions(self, task: str) -> list[dict[str, Any]]:
        """Return what the last training on a task predicted for each sample that its head was not fitted on.

        Never of the kept head, which has seen every label.

        Parameters
        ----------
        task : str

        Returns
        -------
        list of dict
            ``name``, ``label`` and ``prediction`` (class names; of several labels those that hold or are above one
            half, joined by ``;``; of numbers by name), ``right`` (of classes), ``split``, and ``judged``: ``reported``,
            or ``selection`` where the head was chosen by it.

        Raises
        ------
        StoreError
            Nothing was trained on it.
        """
        last, labels = self.history(task).last(), self.task(task)
        if last is None:
            raise StoreError(f"{self.path}: no head was trained on task {task!r}; run `featurecache train` first")
        return predictions_of(last, labels, self.samples)

    def task_names(self) -> list[str]:
        """Names of all tasks."""
        return sorted({path.parents[1].name for path in (self.path / "tasks").glob("*/commits/[0-9]*.json")})

    def head_names(self) -> list[str]:
        """Names of all saved heads."""
        records = self.heads_path.glob("*/head.json")
        return sorted(record.parent.name for record in records if not is_partial(record.parent))

    def _listings_of(self, root: str | Path | None) -> list[Listing]:
        listings = self.listings.all() if root is None else [self.listings.load(root)]
        found = [listing for listing in listings if listing is not None]
        if not found:
            source = "any source" if root is None else str(root)
            raise StoreError(f"{self.path} holds no samples from {source}; run `featurecache extract` on it first")
        return found
