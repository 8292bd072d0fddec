"""What the shards record of images that the network sees as (nearly) one colour, as a warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from featurecache.errors import MAX_EXAMPLES, ReportWarning
from featurecache.specs import AnyPreprocess, PreprocessSpec
from featurecache.store.commits import Commit
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.listings import merged_rows
from featurecache.store.samples import Rows


def flat_images_warning(feature_set: FeatureSet, features: Features, rows: Rows | None = None) -> ReportWarning | None:
    """Count what became flat, among some rows or all that sources hold, from the records of all writers.

    So neither the number nor the order of the writers matters.
    """
    commits = features.commits
    if not any(name.startswith("flat_") for commit in commits for name in commit.body):
        return None
    held = merged_rows(feature_set.sources.all()) if rows is None else rows
    deep, transparent = (rows_recorded(commits, f"flat_{kind}", held) for kind in ("deep", "transparent"))
    names = feature_set.samples.uris_of(np.union1d(deep, transparent)[:MAX_EXAMPLES].tolist())
    return flat_images(len(deep), len(transparent), names, feature_set.identity.preprocess)


def rows_recorded(commits: Sequence[Commit], name: str, held: Rows) -> Rows:
    """Return those of the rows held, sorted, that lie in the runs of a field of some commits."""
    found = [
        held[slice(*np.searchsorted(held, [start, stop]))]
        for commit in commits
        for start, stop in commit.body.get(name, [])
    ]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


@dataclass
class FlatCounter:
    """Counts images that became flat as they come, and keeps the names of the first."""

    kinds: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)

    def add(self, name: str, kind: str) -> None:
        """Take an image: ``deep``, ``transparent``, or empty where nothing is to be said of it."""
        if kind:
            self.kinds[kind] += 1
            self.names += [name][: MAX_EXAMPLES - len(self.names)]

    def warnings(self, preprocess: AnyPreprocess) -> list[ReportWarning]:
        """Return the warning, if there is anything to warn of."""
        warning = flat_images(self.kinds["deep"], self.kinds["transparent"], self.names, preprocess)
        return [] if warning is None else [warning]


def flat_images(deep: int, transparent: int, names: Sequence[str], preprocess: AnyPreprocess) -> ReportWarning | None:
    """Return the warning, if there is anything to warn of.

    Parameters
    ----------
    deep, transparent : int
        Number of images of more than 8 bits, and of transparent ones, that are flat though their files are not.
    names : sequence of str
        Of the first of both.
    preprocess
        Of the network that sees them.
    """
    if not deep + transparent:
        return None
    chosen = preprocess.range if isinstance(preprocess, PreprocessSpec) else "full"
    shown = chosen if isinstance(chosen, str) else ",".join(f"{value:g}" for value in chosen)
    advice = {
        "full": "--range image shows each from its least to its greatest value, --range LOW,HIGH what lies between two",
        "image": "a few pixels reach far beyond the others; --range LOW,HIGH shows what lies between two values",
    }
    kinds = []
    if deep:
        other = advice.get(shown, "another --range LOW,HIGH, or --range image, shows them")
        kinds.append(f"{deep} of more than 8 bits, with --range {shown} ({other})")
    if transparent:
        kinds.append(f"{transparent} transparent ones, of which only the background is seen (save them opaque)")
    count = deep + transparent
    noun = "image is" if count == 1 else "images are"
    text = f"{count} {noun} one colour, or nearly, to the network although the files hold more: {' and '.join(kinds)}"
    return ReportWarning(kind="flat_images", count=count, text=text, examples=tuple(names))
