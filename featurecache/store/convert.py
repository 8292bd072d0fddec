"""Another precision of cached features, made from the cache alone; the first is not touched."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from featurecache.errors import CorruptError, RequestError
from featurecache.store.commits import Commit
from featurecache.store.constants import ConstantFinder
from featurecache.store.dtypes import DIGITS, LARGEST
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features, body_of_rows, is_among, rows_of_commit
from featurecache.store.precision import finite_rows, measure_error, read_back, stored_arrays
from featurecache.store.samples import Rows
from featurecache.store.schemas import Precision
from featurecache.store.store import FeatureStore


def convert_features(
    store: FeatureStore, source: FeatureSet, dtype: str, *, on_shard: Callable[[int, int], None] | None = None
) -> FeatureSet:
    """Write the features of one set in another number type.

    Parameters
    ----------
    store : FeatureStore
        The cache.
    source : FeatureSet
        What to convert.
    dtype : str
        ``float16``, ``bfloat16`` or ``int8``.
    on_shard : callable, optional
        Called with (shards done, shards to do).

    Raises
    ------
    RequestError
        The wanted type would promise digits that the stored one does not have.
    """
    if dtype not in DIGITS:
        raise RequestError(f"unknown dtype {dtype!r}; known: {', '.join(DIGITS)}")
    if dtype == source.dtype or DIGITS[dtype] > DIGITS[source.dtype] or source.dtype == "int8":
        raise RequestError(
            f"{source.dtype} features cannot become {dtype}: the missing digits are gone; "
            f"run `featurecache extract --dtype {dtype}`"
        )
    target = store.add_feature_set(source.identity, source.about, source.tap, dtype)
    # First, so that what a killed conversion leaves has its reference rows and warnings.
    if (reference := source.reference()) is not None:
        target.keep_reference(reference)
    for warning in source.warnings():
        target.keep_warning(warning)
    features, there = source.open(), target.open().rows
    for number, commit in enumerate(features.commits, 1):
        # By rows, not by keys: the shards of an extraction in the wanted type may be of another size.
        rows = rows_of_commit(commit)
        while len(missing := rows[~is_among(rows, there)]):
            try:
                is_first = _convert_rows(source, features, commit, missing, target)
            except CorruptError:
                if source.folder.still_holds(commit):
                    raise
                # A collection has withdrawn it; what it kept lies in another shard.
                return convert_features(store, source, dtype, on_shard=on_shard)
            if is_first:
                break
            # Another writer was faster, and must have added the row that names the commit.
            there = target.open().rows
            if missing[0] not in there:
                raise CorruptError(
                    f"{target.folder.path}: commit {missing[0]:012d} does not hold the row that it is named after; run "
                    "`featurecache verify`"
                )
        if on_shard:
            on_shard(number, len(features.commits))
    return target


def _convert_rows(source: FeatureSet, features: Features, commit: Commit, rows: Rows, target: FeatureSet) -> bool:
    """Convert some rows of a shard; False when another writer was first."""
    index = np.searchsorted(rows_of_commit(commit), rows)
    values = features.read_shard(commit)[index].astype(np.float32)
    body = body_of_rows(commit, rows)
    bad = list(body["bad"])
    known = {row for row, *_ in bad}
    with np.errstate(invalid="ignore"):  # of bad rows, which are NaN
        largest = np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0)
        too_large = np.flatnonzero(largest > LARGEST.get(target.dtype, np.inf))
    for number in too_large.tolist():
        if rows[number] not in known:
            reason = f"a feature exceeds the range of {target.dtype}; use --dtype float32"
            bad.append([int(rows[number]), "overflow", reason])
        values[number] = np.nan
    views = target.identity.views
    arrays = stored_arrays(values, target.dtype, views)
    error = measure_error(values, arrays, against=features.dtype, views=views)
    finder = ConstantFinder(views)
    finder.add(read_back(arrays)[finite_rows(values)])
    # The ids that the shard itself holds; they are compared with the sample table when the copy is opened.
    arrays["id"] = ("uint8", source.folder.open(commit).read("id")[index])
    precision = _whole_error(error, body.pop("precision", None))
    body |= {"bad": sorted(bad), "precision": msgspec.to_builtins(precision), "converted_from": features.dtype}
    body.pop("constant", None)
    if (constant := finder.runs()) is not None:
        body["constant"] = constant
    return target.folder.publish(f"{rows[0]:012d}", arrays, body, kind="features")


def _whole_error(error: Precision, recorded: object) -> Precision:
    """Bound the error against float32 of features that were rounded before: by the triangle inequality, the sum."""
    if error.against == "float32" or recorded is None:
        return error
    before = msgspec.convert(recorded, Precision)
    sums = {}
    for name in ("relative_rms", "relative_largest", "relative_to_spread"):
        mine, earlier = getattr(error, name), getattr(before, name)
        sums[name] = mine if mine is None or earlier is None else float(f"{mine + earlier:.3g}")
    return msgspec.structs.replace(error, against=before.against, bound=True, **sums)
