"""Arms with a linear probe fitted on each: what the questions about features are answered from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joblib import Parallel, delayed

from featurecache.advice.evidence import Arm, Evidence, gains
from featurecache.advice.probe import Floats, Probe
from featurecache.machine import num_cores
from featurecache.store.naming import distinct_names
from featurecache.store.store import FeatureStore

if TYPE_CHECKING:
    from featurecache.progress import Progress


@dataclass(frozen=True, eq=False)
class ProbedArm(Arm):
    """An arm with its probe.

    Attributes
    ----------
    name : str
        What people call it.
    probe : Probe
    gains : ndarray of float64 (n,)
        What each row adds to the score out of fold; see `featurecache.advice.evidence.gains`.
    is_default : bool
        Its tap is the network's default one.
    """

    name: str
    probe: Probe
    gains: Floats
    is_default: bool


def fit_probes(
    evidence: Evidence, store: FeatureStore, *, n_jobs: int = -1, progress: Progress | None = None
) -> list[ProbedArm]:
    """Fit a linear probe on each arm, or take up what the cache has noted of it.

    Parameters
    ----------
    evidence : Evidence
    store : FeatureStore
    n_jobs : int
        Threads; all cores when negative.
    progress : Progress, optional
        Told of each arm.
    """
    if progress is not None:
        progress.start("comparing features", len(evidence.arms))
    names = _names_of(evidence)

    def fit(arm: Arm) -> ProbedArm:
        probe = evidence.probe(arm, store)
        if progress is not None:
            progress.advance(1)
        gained = gains(evidence.y, probe.out_of_fold, evidence.task.kind)
        is_default = arm.feature_set.tap.partition(":")[0] == "pre_logits"
        return ProbedArm(arm.feature_set, arm.role, arm.rows, names[arm.feature_set.key], probe, gained, is_default)

    num_threads = min(num_cores() if n_jobs < 0 else max(n_jobs, 1), len(evidence.arms))
    # Threads: what takes long is linear algebra, which lets others run.
    return list(Parallel(n_jobs=num_threads, require="sharedmem")(delayed(fit)(arm) for arm in evidence.arms))


def _names_of(evidence: Evidence) -> dict[str, str]:
    """Return what people call each arm, by the key of its feature set."""
    names = {}
    for is_baseline in (True, False):
        arms = [arm for arm in evidence.arms if arm.feature_set.is_baseline == is_baseline]
        documents = [arm.feature_set.to_json() for arm in arms]
        if is_baseline:  # what no network made has one tap, which says nothing
            documents = [{**document, "tap": document["backbone"], "backbone": ""} for document in documents]
        for arm, name in zip(arms, distinct_names(documents), strict=True):
            # An untrained network has the name of the pretrained one, and may stand beside it.
            names[arm.feature_set.key] = f"{name}, untrained" if arm.role == "untrained" else name
    return names
