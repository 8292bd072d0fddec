"""What is doubtful about cached features: what was kept with them, and what the records of their shards show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from featurecache.errors import ReportWarning, unique_warnings
from featurecache.store.constants import constant_warning
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import rows_of_commit
from featurecache.store.image_warnings import image_warnings
from featurecache.store.precision import in_percent, storage_warning, widest
from featurecache.store.row_runs import RowRuns
from featurecache.store.store import FeatureStore
from featurecache.wording import counted


def warnings_of(feature_set: FeatureSet, rows: RowRuns | None = None) -> list[ReportWarning]:
    """Return the warnings that were kept with a feature set, then those that the records of its shards give.

    Parameters
    ----------
    feature_set : FeatureSet
    rows : RowRuns, optional
        Of the samples that matter where samples are counted; by default all that any source holds.
    """
    features = feature_set.open()
    measured = [storage_warning(feature_set, features), constant_warning(feature_set, features)]
    about_images = image_warnings(feature_set, features, rows)
    features.let_go()
    return [*feature_set.warnings(), *(warning for warning in measured if warning is not None), *about_images]


def feature_warnings(sets: Sequence[FeatureSet], rows: RowRuns | None = None) -> list[ReportWarning]:
    """Return what is doubtful about feature sets: what is true of all once, else with the name of backbone or set.

    Parameters
    ----------
    sets : sequence of FeatureSet
    rows : ndarray of int64, optional
        As for `warnings_of`.
    """
    holders: dict[ReportWarning, list[FeatureSet]] = {}
    for feature_set in sets:
        for warning in unique_warnings(warnings_of(feature_set, rows)):
            holders.setdefault(warning, []).append(feature_set)
    of_backbone = Counter(feature_set.identity.backbone for feature_set in sets)
    found = []
    for warning, held in holders.items():
        backbones = Counter(feature_set.identity.backbone for feature_set in held)
        if len(held) == len(sets):
            found.append(warning)
        elif all(count == of_backbone[backbone] for backbone, count in backbones.items()):
            found += [warning.about(backbone) for backbone in backbones]
        else:
            found += [warning.about(str(feature_set)) for feature_set in held]
    return unique_warnings(found)


def held_type(sets: Sequence[FeatureSet], fingerprint: str, tap: str) -> str | None:
    """Return the widest type in which good features of a tap are cached, None where there are none.

    Parameters
    ----------
    sets : sequence of FeatureSet
    fingerprint, tap : str
    """
    dtypes = []
    for feature_set in sets:
        if (feature_set.fingerprint, feature_set.tap) != (fingerprint, tap):
            continue
        # Nothing is stored of bad inputs, so a type of these alone does not count. The last record is nearly always
        # enough to see that, where reading all of them takes a while.
        last = feature_set.folder.last()
        if last is None or len(last.body["bad"]) >= len(rows_of_commit(last)):
            features = feature_set.open()
            if len(features) == len(features.bad):
                continue
        dtypes.append(feature_set.dtype)
    return widest(dtypes)


def float32_warning(store: FeatureStore, feature_set: FeatureSet) -> ReportWarning | None:
    """Return a warning where ``--dtype auto`` chose float32."""
    record = store.recall_type(feature_set.identity.plain.fingerprint, feature_set.tap)
    if record is None or record.dtype != "float32" or feature_set.dtype != "float32":
        return None
    error = record.error
    cost = "cannot hold them" if error is None else f"would add an error of {in_percent(error)} of their spread"
    return ReportWarning(
        kind="storage_error",
        count=1,
        text=f"the features of {feature_set.tap} are stored as float32, in twice the space, because float16 {cost} "
        f"(measured on {counted(record.rows, 'sample')}; --dtype float16 stores them so all the same)",
    )
