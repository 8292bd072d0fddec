"""Whether a cache is what it says: its records and bytes, its kept heads, and rows computed again from their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from featurecache.store.soundness import feature_warnings
from featurecache.store.verify import Problem, Verification, verify

if TYPE_CHECKING:
    from featurecache.errors import ReportWarning
    from featurecache.extraction.deep_verification import DeepVerification
    from featurecache.extraction.recomputation import Inputs
    from featurecache.progress import Progress
    from featurecache.store.store import FeatureStore


@dataclass(frozen=True, slots=True)
class CacheVerification:
    """What was found.

    Attributes
    ----------
    stored : Verification
        Of records, bytes and heads.
    deep : DeepVerification or None
        Of rows that were computed again; None where nobody asked, or where the stored ones have problems.
    warnings : list of ReportWarning
        A cache can be whole, and its features worth nothing.
    """

    stored: Verification
    deep: DeepVerification | None
    warnings: list[ReportWarning]

    @property
    def problems(self) -> list[Problem]:
        """All of them."""
        return [*self.stored.problems, *(self.deep.problems if self.deep else ())]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        warnings = [warning.to_json() for warning in self.warnings]
        return {**self.stored.to_json(), "deep": self.deep and self.deep.to_json(), "warnings": warnings}


def verify_cache(
    store: FeatureStore,
    *,
    level: str = "digest",
    sample: float = 1.0,
    inputs: Inputs | None = None,
    num_rows: int | None = None,
    on_shard: Callable[[int, int], None] | None = None,
    progress: Progress | None = None,
) -> CacheVerification:
    """Check a cache without changing it.

    Parameters
    ----------
    store : FeatureStore
        Opened with ``strange=True`` where it may hold anything.
    level, sample, on_shard
        As for `featurecache.store.verify.verify`.
    inputs : Inputs, optional
        Where the inputs are, to compute rows again.
    num_rows : int, optional
        Of each fingerprint, how many.
    progress : Progress, optional
        Told how far that is.
    """
    stored = verify(store, level=level, sample=sample, on_shard=on_shard)
    # Heads are read by what the cache says, and rows compared with what it holds: it has to be whole before.
    if not stored.problems and store.head_names():
        from featurecache.deployment.saved import verify_heads

        stored = replace(stored, problems=tuple(verify_heads(store)))
    if stored.problems:
        # Nothing is said of the features: of damaged ones it would mean nothing.
        return CacheVerification(stored, None, [])
    deep = None
    if inputs is not None:
        from featurecache.extraction.deep_verification import DEFAULT_ROWS, verify_deep

        deep = verify_deep(store, inputs, num_rows=DEFAULT_ROWS if num_rows is None else num_rows, progress=progress)
    return CacheVerification(stored, deep, feature_warnings(store.feature_sets()))
