"""Deep verification: sampled rows are computed again from their inputs and compared with what is stored.

The other levels of verification (in ``store/``) ask whether a cache is what it was; this one asks whether it was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.lengths import full_length
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.torch_runtime import checked_device
from featurecache.errors import FeatureCacheError, InputError, RequestError
from featurecache.extraction import drift
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import run_pipeline, to_stored
from featurecache.extraction.reading import inputs_of_rows
from featurecache.extraction.recomputation import Inputs
from featurecache.extraction.reproduction import may_be
from featurecache.progress import Progress, Silent
from featurecache.records import PlainValues
from featurecache.sources.source import Source
from featurecache.store.bad_inputs import TRANSIENT
from featurecache.store.dtypes import decode
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.listings import Listing
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.verify import Problem
from featurecache.wording import counted

DEFAULT_ROWS = 64


@dataclass
class DeepVerification(PlainValues):
    """What came out of computing stored rows again, summed over feature sets.

    Attributes
    ----------
    num_rows : int
        Rows that were computed again.
    num_identical, num_close : int
        Rows with the same stored bytes (or the same status of a bad input), and rows that differ by no more than the
        tolerance of the drift guard.
    problems : list of Problem
        Rows that differ by more, and features that could not be computed again.
    """

    num_rows: int = 0
    num_identical: int = 0
    num_close: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Again:
    """Rows that were computed again: features by tap, and why a row has none."""

    rows: Rows
    paths: list[str]
    features: dict[str, NDArray[np.float32]]
    problems: list[InputError | None]

    def of(self, features: Features) -> _Again:
        """Keep the rows that are cached, and whose files are still what they were."""
        kept = [problem is None or problem.status not in TRANSIENT for problem in self.problems]
        indices = np.flatnonzero(np.array(kept, bool) & np.isin(self.rows, features.rows))
        return _Again(
            self.rows[indices],
            [self.paths[index] for index in indices.tolist()],
            {tap: values[indices] for tap, values in self.features.items()},
            [self.problems[index] for index in indices.tolist()],
        )


def verify_deep(
    store: FeatureStore,
    inputs: Inputs,
    *,
    num_rows: int = DEFAULT_ROWS,
    random_state: int | None = None,
    progress: Progress | None = None,
) -> DeepVerification:
    """Compute sampled rows of every feature set again from the original inputs and compare.

    Parameters
    ----------
    store : FeatureStore
        The cache.
    inputs : Inputs
        Where the inputs lie; only samples that are still there can be compared.
    num_rows : int
        Rows of each fingerprint, chosen at random.
    random_state : int, optional
        Seed of that choice; another one each time when left out.
    progress : Progress, optional
        Told how far it is.

    Raises
    ------
    RequestError
        The source holds none of the cached samples.
    """
    if num_rows < 1:
        raise RequestError(f"rows to compute again must be at least 1, got {num_rows}")
    sets = [s for s in store.feature_sets() if may_be(s.identity.backbone, inputs.backbone)]
    # Where there are none, this raises an error that names those that there are.
    sets = sets or store.select_sets(backbone=inputs.backbone)
    source, listing, sets = inputs.find(store, sets, progress)
    found, rng = DeepVerification(), np.random.default_rng(random_state)
    for fingerprint in dict.fromkeys(feature_set.fingerprint for feature_set in sets):
        group = [feature_set for feature_set in sets if feature_set.fingerprint == fingerprint]
        cached = [feature_set.open() for feature_set in group]
        at_hand = np.intersect1d(listing.unique_rows, np.concatenate([features.rows for features in cached]))
        rows = np.sort(rng.choice(at_hand, min(num_rows, len(at_hand)), replace=False))
        if len(rows) == 0:
            continue
        try:
            again, differing = _compute(group, rows, source, listing, inputs, progress or Silent())
        except FeatureCacheError as error:  # the other feature sets can still be compared
            what = f"not computed again: {' '.join(str(error).split())}"
            found.problems.append(Problem(f"features/{fingerprint}", what, "name it to `featurecache verify`"))
            continue
        for feature_set, features in zip(group, cached, strict=True):
            _compare(feature_set, features, again, differing, found)
    if not found.num_rows and not found.problems:
        raise RequestError(
            f"{inputs.source} holds none of the samples whose features are cached in {store.path}; name the folder "
            "that they were extracted from"
        )
    return found


def _compute(
    group: Sequence[FeatureSet], rows: Rows, source: Source, listing: Listing, inputs: Inputs, progress: Progress
) -> tuple[_Again, list[str]]:
    """Run one pass for all taps of a fingerprint; return also what has changed on the machine since."""
    backbone = inputs.reproduce(group[0])
    taps = resolve_taps(backbone, list(dict.fromkeys(feature_set.tap for feature_set in group)))
    ran = drift.recorded_provenance(group)
    assert ran is not None
    modality = modality_of(backbone.preprocess, backbone.tokenizer, group[0].identity.views)
    # Of the batch size that made the features: another one takes other kernels, which round otherwise.
    same_device = drift.is_same_device(ran, str(checked_device(inputs.settings.device)))
    runtime = open_runtime(
        backbone,
        taps,
        device=inputs.settings.device,
        batch_size=ran.batch_size if same_device else None,
        num_inputs=len(rows),
        remembered=ran.runtime,
        # Earlier releases padded each text to the most tokens.
        lengths=ran.lengths or full_length(backbone),
        norms_folded=ran.norms_folded if ran.runtime == "torch" else None,
    )
    progress.start("computing again", len(rows))
    outcomes = []
    try:
        with modality.undisturbed():
            # Not by their stamps: a file that was changed behind a copied stamp is what is looked for here.
            samples = inputs_of_rows(source, listing, group[0].samples, rows, by_stamp=False)
            for outcome in run_pipeline(samples, runtime, modality, num_workers=inputs.settings.num_workers):
                outcomes.append(outcome)
                progress.advance(len(outcome.problems))
        features = {tap.name: np.concatenate([o.features[tap.name] for o in outcomes]) for tap in taps}
        problems = [problem for outcome in outcomes for problem in outcome.problems]
        return _Again(rows, listing.paths_of(rows), features, problems), drift.changes(ran, runtime)
    finally:
        runtime.close()


def _compare(
    feature_set: FeatureSet, features: Features, again: _Again, differing: Sequence[str], found: DeepVerification
) -> None:
    """Compare the rows that one feature set holds."""
    again = again.of(features)
    if not len(again.rows):  # a tap that was added for fewer samples holds none of these
        return
    rounded = "float32" if feature_set.dtype == "int8" else feature_set.dtype  # its steps depend on the whole shard
    stored, bad_now = to_stored(again.features[feature_set.tap], again.problems, rounded)
    statuses = [features.bad[row][0] if row in features.bad else "good" for row in again.rows.tolist()]
    statuses_now = [bad_now[index].status if index in bad_now else "good" for index in range(len(statuses))]
    good = np.array([pair == ("good", "good") for pair in zip(statuses, statuses_now, strict=True)], bool)
    errors = np.zeros(len(good))
    if good.any():
        errors[good] = _relative_errors(features.read(again.rows[good]), decode(stored[good], rounded))
    limit = drift.tolerance(feature_set.dtype, feature_set.identity.precision)
    wrong = [
        f"{path} is stored as {before}, and is {now} now"
        if before != now
        else f"{path} differs by {error:.1e} of the largest feature"
        for path, before, now, error in zip(again.paths, statuses, statuses_now, errors.tolist(), strict=True)
        if before != now or error > limit
    ]
    num_close = int(((errors > 0) & (errors <= limit)).sum())
    found.num_rows += len(good)
    found.num_close += num_close
    found.num_identical += len(good) - len(wrong) - num_close
    if wrong:
        since = ", ".join(differing) or (
            "no library, so either the stored rows or the network's code are not what they were"
        )
        found.problems.append(
            Problem(
                f"features/{feature_set.fingerprint}/{feature_set.folder.path.parent.name}/{feature_set.dtype}",
                f"{counted(len(wrong), 'row', of=len(good))} computed again {'is' if len(wrong) == 1 else 'are'} "
                "not as stored, "
                f"first: {wrong[0]}. What has changed on this machine since: {since}",
                "run `featurecache extract` into another cache",
            )
        )


def _relative_errors(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
    """Largest difference of each row, relative to the largest stored number of all."""
    exact = before.reshape(len(before), -1).astype(np.float64)
    scale = max(float(np.abs(exact).max(initial=0)), 1e-12)
    difference = np.abs(exact - after.reshape(exact.shape).astype(np.float64))
    return np.asarray(difference.max(axis=1, initial=0) / scale)
