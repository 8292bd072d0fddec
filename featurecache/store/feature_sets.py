"""One tap of one fingerprint in one number type: its folder in a cache, its records, and how people name it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from featurecache.atomic import is_partial, make_folder, publish_bytes, publish_once
from featurecache.errors import CorruptError, ReportWarning, UnknownNameError, command_line, nearest_layers
from featurecache.records import encode_record, read_record
from featurecache.specs import FeatureIdentity, check_takes_views
from featurecache.store import schemas
from featurecache.store.dtypes import DIGITS, STORED
from featurecache.store.features import Features
from featurecache.store.folders import ShardFolder
from featurecache.store.listings import Listings
from featurecache.store.samples import SampleTable
from featurecache.store.schemas import BackboneAbout, checked_body, features_schema
from featurecache.wording import counted


@dataclass(frozen=True)
class FeatureSet:
    """One tap of one fingerprint in one number type: what `Features` reads and extraction extends."""

    fingerprint: str
    identity: FeatureIdentity
    about: BackboneAbout
    tap: str
    dtype: str
    folder: ShardFolder
    samples: SampleTable
    sources: Listings

    def __repr__(self) -> str:
        views = f", {counted(self.num_views, 'view')}" if self.num_views else ""
        return f"FeatureSet({self.identity.backbone!r}, {self.tap!r}, {self.dtype}{views}, {self.fingerprint[:12]})"

    def open(self) -> Features:
        """Return the cached features."""
        return Features(self.tap, self.dtype, self.folder, self.samples, num_views=self.num_views)

    @property
    def num_views(self) -> int | None:
        """How many views of each sample are kept; ``None`` for plain features."""
        return None if self.identity.views is None else self.identity.views.count

    @property
    def activation_shape(self) -> tuple[int, ...]:
        """Shape of what a network has for one sample, or for one view of it."""
        return self.open().view_shape

    @property
    def num_bytes(self) -> int:
        """Of one sample in the cache, its id apart."""
        return math.prod(self.open().sample_shape) * np.dtype(STORED[self.dtype]).itemsize

    @property
    def key(self) -> str:
        """Tell it from all others."""
        return f"{self.fingerprint} {self.tap} {self.dtype}"

    @property
    def is_pooled(self) -> bool:
        """Tell whether a sample, or a view of it, is one vector, without positions or tokens."""
        return len(self.activation_shape) == 1

    @property
    def is_untrained(self) -> bool:
        """Tell whether its network had random weights."""
        return self.about.weights_source.startswith("random initialisation")

    @property
    def is_baseline(self) -> bool:
        """Tell whether no network made it: pixels, a histogram of colours, or counts of words."""
        return self.identity.backbone.startswith("pixels:") or self.identity.backbone in ("colours", "words")

    def reference(self) -> dict[str, Any] | None:
        """Return what `keep_reference` kept."""
        path = self.folder.path / "probe.json"
        if not path.is_file():
            return None
        record = read_record(path, "probe")
        if self.tap not in checked_body(record, schemas.ReferenceBody, str(path)).features:
            raise CorruptError(f"{path} says nothing of tap {self.tap!r}; remove it")
        return record

    def keep_reference(self, record: dict[str, Any]) -> None:
        """Keep what known images gave where these features were first made; the first record stays."""
        make_folder(self.folder.path)
        # Of writers that begin at once the first decides, so that all compute with one runtime.
        publish_once(self.folder.path / "probe.json", encode_record("probe", record))

    def keep_warning(self, warning: ReportWarning) -> None:
        """Keep a warning with the features, so that `info` and `train` repeat it; one of the same kind is replaced."""
        folder = self.folder.path / "warnings"
        make_folder(folder)
        # Not once: a later run has counted anew.
        publish_bytes(folder / f"{warning.kind}.json", encode_record("warning", warning.to_json()))

    def warnings(self) -> list[ReportWarning]:
        """Return the kept warnings, by kind."""
        folder = self.folder.path / "warnings"
        if not folder.is_dir():
            return []
        return [_read_warning(path) for path in sorted(folder.glob("*.json")) if not is_partial(path)]

    @property
    def names(self) -> dict[str, str]:
        """The names by which it is chosen."""
        return {
            "backbone": self.identity.backbone,
            "tap": self.tap,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
        }

    def to_json(self) -> dict[str, str | int | None]:
        """Return plain JSON values."""
        return {**self.names, "views": self.num_views}

    def __str__(self) -> str:
        views = "" if self.num_views is None else f", {counted(self.num_views, 'view')}"
        return f"{self.identity.backbone} {self.tap} {self.dtype}{views} ({self.fingerprint[:12]})"


def feature_set_in(
    folder: Path, identity: FeatureIdentity, about: BackboneAbout, samples: SampleTable, sources: Listings
) -> FeatureSet:
    """Return the feature set whose shards lie, or will lie, in a folder of a cache.

    Parameters
    ----------
    folder : Path
        Its name and its parent's are the number type and the tap.
    identity, about, samples, sources
        See `FeatureSet`.
    """
    # Both are percent-encoded, so that there is one = in the name.
    node, _, pooling = folder.parent.name.rpartition("=")
    tap, dtype = f"{unquote(node)}:{unquote(pooling)}", folder.name
    shards = ShardFolder(folder, features_schema(dtype))
    return FeatureSet(identity.fingerprint, identity, about, tap, dtype, shards, samples, sources)


def folder_of_tap(tap: str) -> str:
    """Return the name of the folder for features of a tap."""
    node, _, pooling = tap.rpartition(":")
    return f"{quote(node, safe='')}={quote(pooling, safe='+')}"


def _read_warning(path: Path) -> ReportWarning:
    found = checked_body(read_record(path, "warning"), schemas.WarningBody, str(path))
    if found.kind != path.stem:
        raise CorruptError(f"{path} holds a warning of kind {found.kind!r}; remove it")
    return ReportWarning(kind=found.kind, count=found.count, text=found.text, examples=tuple(found.examples))


def choose(sets: list[FeatureSet], names: Mapping[str, str | None], views: int | None) -> list[FeatureSet]:
    """Return the feature sets that fit; a name that fits none is an error that lists the known ones.

    Parameters
    ----------
    sets : list of FeatureSet
    names : mapping
        ``backbone``, ``tap``, ``dtype`` or ``fingerprint`` to a name; the node of a tap will do, and the beginning of a
        fingerprint. None for those that do not matter.
    views : int or None
        Number of views of each sample, 0 for plain features only.
    """
    for kind, name in names.items():
        if name is None:
            continue
        fitting = [s for s in sets if _fits(s.names[kind], kind, name)]
        # A whole name counts more than one that only begins so.
        fitting = [s for s in fitting if s.names[kind] == name] or fitting
        if not fitting:
            known = sorted({s.names[kind] for s in sets})
            advice = (
                f"run `{command_line('extract', f'--{kind}', name)}` to add it" if kind in ("tap", "backbone") else ""
            )
            if kind == "tap":
                advice += f", if it is one that `{command_line('inspect', sets[0].identity.backbone)}` lists"
            near = nearest_layers(name, known) if kind == "tap" else None
            raise UnknownNameError(f"cached {kind}", name, known, near=near, advice=advice)
        sets = fitting
    # What transfer is compared with stands beside the features, and is taken only where it is named.
    if names.get("fingerprint") is None:
        if names.get("backbone") is None:
            sets = [s for s in sets if not s.is_baseline] or sets
        trained = {s.identity.architecture for s in sets if not s.is_untrained}
        sets = [s for s in sets if not (s.is_untrained and s.identity.architecture in trained)]
    if views is None:
        return sets
    fitting = [s for s in sets if (s.num_views or 0) == views]
    if not fitting:
        # Where no set is of images there are no views to add.
        if sets and all(s.identity.preprocess.modality != "image" for s in sets):
            check_takes_views(sets[0].identity.preprocess.modality, f"the cached {sets[0]}", option="--views")
        known = sorted({str(s.num_views or 0) for s in sets})
        advice = f"run `featurecache extract --views {views}` to add them"
        raise UnknownNameError("cached number of views", str(views), known, advice=advice)
    return fitting


def _fits(value: str, kind: str, name: str) -> bool:
    if kind == "fingerprint":
        return value.startswith(name)
    if kind == "backbone":  # kept without the folder of its files: `hf:FOLDER`, `hub:FOLDER:entry`, `file:P`
        prefix, colon, path = name.partition(":")
        bare = "" if colon else value.partition(":")[2]
        return name == bare or value in (name, f"{prefix}{colon}{PurePath(path).name}")
    return value == name or (kind == "tap" and value.partition(":")[0] == name)


def prefer_wider(sets: Sequence[FeatureSet]) -> list[FeatureSet]:
    """Of features in several number types choose one: with most rows, and of those in the widest type.

    A conversion or an extraction that was killed leaves a type with fewer rows, whichever it is.
    """
    alike: dict[tuple[str, str], list[FeatureSet]] = {}
    for feature_set in sets:
        alike.setdefault((feature_set.fingerprint, feature_set.tap), []).append(feature_set)
    types = list(DIGITS)
    return [
        # Rows are counted from the records of all shards, so only where there is a choice.
        same[0] if len(same) == 1 else max(same, key=lambda s: (len(s.open().rows), -types.index(s.dtype)))
        for same in alike.values()
    ]


def type_warnings(chosen: Iterable[FeatureSet], sets: Sequence[FeatureSet]) -> list[ReportWarning]:
    """Say of features that were chosen for their number type which other types there are."""
    found = []
    for used in chosen:
        alike = {s.dtype: s for s in sets if (s.fingerprint, s.tap) == (used.fingerprint, used.tap)}
        others = [s for dtype, s in alike.items() if dtype != used.dtype]
        if not others or used.dtype not in alike:
            continue
        most = len(used.open().rows)
        known = ", ".join(f"{s.dtype} (--dtype {s.dtype}, {counted(len(s.open().rows), 'row')})" for s in others)
        text = (
            f"the {used.dtype} features of {used.tap} are used ({counted(most, 'row')}); they are cached as {known} too"
        )
        found.append(ReportWarning(kind="stored_type", count=len(others), text=text))
    return found


def pooled_if_any(sets: Sequence[FeatureSet]) -> list[FeatureSet]:
    """Leave out features with positions or tokens, for layers to be trained on, where there are pooled ones too."""
    return [feature_set for feature_set in sets if feature_set.is_pooled] or list(sets)


def read_spec(spec: Path) -> tuple[FeatureIdentity, BackboneAbout]:
    """Read how the features in a folder were made, and what `info` shows besides."""
    body = checked_body(read_record(spec, "spec"), schemas.SpecBody, str(spec))
    try:
        identity = FeatureIdentity.from_json(body.identity)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{spec} describes no features ({error}); restore it from a copy") from None
    # A spec of another folder would describe features that were made in another way.
    if identity.fingerprint != spec.parent.name:
        raise CorruptError(f"{spec} has another fingerprint than its folder's name; restore it from a copy")
    return identity, body.about
