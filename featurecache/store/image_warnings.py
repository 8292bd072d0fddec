"""Warnings about images that are cached: what the network sees as one colour, and what the decoder complained of.

The records of the shards say which rows these are, so neither the number nor the order of the writers matters.
"""

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
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Rows
from featurecache.wording import counted

# Remarks on images, and the fields of a commit that hold the rows with each.
REMARK_FIELDS = {"deep": "flat_deep", "transparent": "flat_transparent", "decoder": "decoder_errors"}


def image_warnings(feature_set: FeatureSet, features: Features, rows: RowRuns | None = None) -> list[ReportWarning]:
    """Return the warnings about the images of a feature set.

    Parameters
    ----------
    feature_set : FeatureSet
    features : Features
        Of that set.
    rows : RowRuns, optional
        Of the samples that count; all that sources hold when left out.
    """
    commits = features.commits
    # Most caches have none, and need no listing to be read.
    if not any(name in commit.body for commit in commits for name in REMARK_FIELDS.values()):
        return []
    # Images that no source holds any more concern nobody.
    held = merged_rows(feature_set.sources.all()) if rows is None else rows
    found = {kind: rows_recorded(commits, name, held) for kind, name in REMARK_FIELDS.items()}
    flat, damaged = (
        feature_set.samples.uris_of(some[:MAX_EXAMPLES].tolist())
        for some in (np.union1d(found["deep"], found["transparent"]), found["decoder"])
    )
    counter = RemarkCounter(Counter({kind: len(some) for kind, some in found.items()}), flat, damaged)
    return counter.warnings(feature_set.identity.preprocess)


def rows_recorded(commits: Sequence[Commit], name: str, held: RowRuns) -> Rows:
    """Return those of some rows that lie in the runs of a field of some commits.

    Parameters
    ----------
    commits : sequence of Commit
    name : str
        Of a field that holds half-open runs of rows.
    held : RowRuns
    """
    runs = np.array([run for commit in commits for run in commit.body.get(name, [])], np.int64).reshape(-1, 2).T
    return RowRuns.union([(runs[0], runs[1])]).intersection(held).rows()


@dataclass
class RemarkCounter:
    """Counts remarks on images as these come, and keeps the names of the first.

    Attributes
    ----------
    counts : Counter of str
        Images with each remark.
    flat, damaged : list of str
        Names of the first that are of one colour, and of those that the decoder complained of.
    """

    counts: Counter[str] = field(default_factory=Counter)
    flat: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def add(self, name: str, remark: str) -> None:
        """Take an image, and what is remarked on it; empty where that is nothing."""
        if remark:
            self.counts[remark] += 1
            names = self.damaged if remark == "decoder" else self.flat
            names += [name][: MAX_EXAMPLES - len(names)]

    def warnings(self, preprocess: AnyPreprocess) -> list[ReportWarning]:
        """Return the warnings that the remarks give.

        Parameters
        ----------
        preprocess : PreprocessSpec
            Of the network that sees the images.
        """
        deep, transparent, errors = (self.counts[remark] for remark in REMARK_FIELDS)
        found, kinds = [], []
        if deep:
            kinds.append(f"{deep} of more than 8 bits, with {_advice_on_range(preprocess)}")
        if transparent:
            kinds.append(f"{transparent} transparent, of which only the background is seen (save them opaque)")
        if count := deep + transparent:
            what = "one colour, or nearly, to the network although the files hold more"
            text = f"{counted(count, 'image', verb='is')} {what}: {' and '.join(kinds)}"
            found.append(ReportWarning(kind="flat_images", count=count, text=text, examples=tuple(self.flat)))
        if errors:
            text = (
                f"{counted(errors, 'image', verb='was')} decoded although the decoder reported errors in the "
                "file, so some of the pixels may "
                "be wrong; open them, and replace what is damaged"
            )
            found.append(ReportWarning(kind="decoder", count=errors, text=text, examples=tuple(self.damaged)))
        return found


def _advice_on_range(preprocess: AnyPreprocess) -> str:
    chosen = preprocess.range if isinstance(preprocess, PreprocessSpec) else "full"
    shown = chosen if isinstance(chosen, str) else ",".join(f"{value:g}" for value in chosen)
    advice = {
        "full": "--range image shows each from its least to its greatest value, --range LOW,HIGH what lies between two",
        "image": "a few pixels reach far beyond the others; --range LOW,HIGH shows what lies between two values",
    }
    return f"--range {shown} ({advice.get(shown, 'another --range LOW,HIGH, or --range image, shows them')})"
