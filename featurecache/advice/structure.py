"""Structure without labels: clusters that come again, near-copies, outliers, a map, and the labels to start with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.active_learning import typical_samples
from featurecache.advice.axes import MapName, k_means, main_axes, plane_of
from featurecache.advice.finding import Finding, Topic
from featurecache.advice.probe import Floats
from featurecache.advice.soundness import pairs_of
from featurecache.evaluation.near_copies import NearCopies, near_copies
from featurecache.heads.outliers import LEAST_ROWS, scores_by_others
from featurecache.heads.preparation import unit_rows
from featurecache.wording import counted

MAX_ROWS = 2000
"""More are sampled."""
_LEAST_STABILITY = 0.75
"""Of clusters that come again: the adjusted Rand index of clusterings by two halves of the samples."""
_MOST_CLUSTERS, _REPEATS = 20, 5
_MOST_COMPARED = 3
_MARGIN = 0.01
"""Of silhouettes above those of a Gaussian."""
_LABELS_OF_A_CLUSTER = 10
_LEAST_FOR_OUTLIERS = LEAST_ROWS * 5 // 4
"""A fifth of the samples is told by the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """A clustering that comes again when the samples are drawn again.

    Attributes
    ----------
    of_sample : ndarray of int64 (n,)
        All 0 where no clustering comes again.
    stability, low, high : float
        Mean adjusted Rand index of clusterings by two halves of the samples (Lange et al., "Stability-based validation
        of clustering solutions", Neural Computation 16, 2004), and its least and greatest over repeats.
    """

    of_sample: NDArray[np.int64]
    stability: float
    low: float
    high: float

    @property
    def count(self) -> int:
        """Number of clusters; 1: none come again."""
        return int(self.of_sample.max()) + 1


def stable_clusters(X: NDArray[np.floating], *, random_state: int = 0) -> Clusters:
    """Return the best separated of the clusterings that come again, by k-means for 2 to 20 clusters.

    One factor that all vary in, such as brightness, divides any samples in two: clusters must be better separated than
    those of a Gaussian of the same covariance (Tibshirani, Walther & Hastie, "Estimating the number of clusters in a
    data set via the gap statistic", JRSS B 63, 2001, compare with such a reference).

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    random_state : int
    """
    coordinates = main_axes(X)
    axes, able = unit_rows(coordinates), list[tuple[float, Clusters]]()
    # Ten samples for each cluster on average, so that both halves have some of it.
    for count in range(2, min(_MOST_CLUSTERS, len(axes) // 10) + 1):
        again = _stability(axes, count, random_state)
        if again.mean() >= _LEAST_STABILITY:
            cluster, separation = _separation(axes, count, random_state)
            found = Clusters(cluster, float(again.mean()), float(again.min()), float(again.max()))
            able.append((separation, found))
    # A reference is drawn and clustered five times for each: only the best separated are worth that.
    for separation, found in sorted(able, key=lambda pair: -pair[0])[:_MOST_COMPARED]:
        generator, spread = np.random.default_rng(random_state), coordinates.std(axis=0)
        references = (unit_rows(generator.normal(size=coordinates.shape) * spread) for _ in range(_REPEATS))
        if separation > max(_separation(reference, found.count, random_state)[1] for reference in references) + _MARGIN:
            return found
    return Clusters(np.zeros(len(axes), np.int64), 0.0, 0.0, 0.0)


def _separation(axes: Floats, count: int, random_state: int) -> tuple[NDArray[np.int64], float]:
    """Return the cluster of each sample by k-means, and the mean silhouette; -1 where all are one cluster."""
    from sklearn.metrics import silhouette_score

    cluster = k_means(axes, count, random_state=random_state, num_starts=5).labels_
    if not 2 <= len(np.unique(cluster)) < len(axes):
        return np.zeros(len(axes), np.int64), -1.0
    return cluster.astype(np.int64), float(silhouette_score(axes, cluster))


def _stability(axes: Floats, count: int, random_state: int) -> Floats:
    """Return how alike clusterings by two halves are, for several ways to halve the samples."""
    from sklearn.metrics import adjusted_rand_score

    alike = np.empty(_REPEATS)
    for repeat in range(_REPEATS):
        order = np.random.default_rng([random_state, repeat]).permutation(len(axes))
        half = len(axes) // 2
        first, second = (
            k_means(axes[rows], count, random_state=repeat, num_starts=3) for rows in (order[:half], order[half:])
        )
        # Either half assigns all samples by its centres, so that both clusterings are of the same samples.
        alike[repeat] = adjusted_rand_score(first.predict(axes), second.predict(axes))
        if repeat == 1 and alike[:2].mean() < _LEAST_STABILITY - 0.2:
            return alike[:2]  # three more would not mend it
    return alike


def structure_findings(
    X: NDArray[np.floating],
    names: Sequence[str],
    *,
    name: str = "the features",
    map_by: MapName = "pca",
    random_state: int = 0,
) -> list[Finding]:
    """Say what there is in samples without labels, and how many labels to start with.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    names : sequence of str
        Of the samples.
    name : str
        What the features are called.
    map_by : {"pca", "umap"}
        As for `plane_of`.
    random_state : int
    """
    axes = unit_rows(main_axes(X))
    clusters = stable_clusters(X, random_state=random_state)
    copies = near_copies(X)
    findings = [
        _clusters_finding(clusters, plane_of(X, map_by, random_state=random_state), map_by, names, name),
        _copies_finding(copies, names, name),
    ]
    if (outliers := outliers_finding(X, names, name, copies.group)) is not None:
        findings.append(outliers)
    count = min(_LABELS_OF_A_CLUSTER * max(clusters.count, 2), len(X))
    typical = typical_samples(axes, np.empty(0, np.int64), count, random_state=random_state)
    findings.append(
        Finding(
            question="structure",
            verdict="labels to start with",
            text=f"start with {counted(count, 'label')}, {_LABELS_OF_A_CLUSTER} for each of "
            f"{max(clusters.count, 2)} clusters; "
            f"typical samples first: {names[typical[0]]}",
            n=len(X),
            basis=f"clusters of {name}; classes that are not clusters need more",
            figure=float(count),
            details={"label_next": [names[index] for index in typical]},
        )
    )
    return findings


def _copies_finding(copies: NearCopies, names: Sequence[str], name: str) -> Finding:
    """Say how many samples are near-copies of others."""
    n, count = len(copies.group), copies.num_alike
    some = counted(count, "sample", of=n, verb="is")
    text = f"{some} near-copies of others: label one of each, and keep them in one split"
    return Finding(
        question="structure",
        verdict="near-copies" if count else "none found",
        text=text if count else f"no near-copies found by features (pairs above {copies.threshold:.2f})",
        figure=float(count),
        n=n,
        basis=f"cosine of standardised features above {copies.threshold:.2f}, by {name}",
        details={"num_pairs": len(copies.pairs), "pairs": pairs_of(copies, names)},
    )


def _clusters_finding(clusters: Clusters, plane: Floats, map_by: MapName, names: Sequence[str], name: str) -> Finding:
    n, sizes = len(plane), np.bincount(clusters.of_sample).tolist()
    # Four digits are enough for a drawing of 2,000 points, which all go into the document.
    points = [
        {"name": names[row], "x": round(float(x), 4), "y": round(float(y), 4), "cluster": int(clusters.of_sample[row])}
        for row, (x, y) in enumerate(plane)
    ]
    details = {"sizes": sizes, "map": points, "map_by": {"pca": "principal axes", "umap": "neighbours"}[map_by]}
    if clusters.count == 1:
        return Finding(
            question="structure",
            verdict="no clusters",
            text="no clustering comes again when samples are drawn again: classes, if there are any, are no clusters",
            n=n,
            basis=f"k-means for 2 to {_MOST_CLUSTERS} clusters on {name}, by halves of the samples",
            details=details,
        )
    return Finding(
        question="structure",
        verdict="clusters",
        text=f"{clusters.count} clusters come again, of {', '.join(map(str, sorted(sizes, reverse=True)))} samples: "
        f"two halves of the samples agree on them by {clusters.stability:.2f} "
        f"({clusters.low:.2f} to {clusters.high:.2f} over {_REPEATS} ways to halve them)",
        figure=clusters.stability,
        n=n,
        basis=f"adjusted Rand index of k-means on {name}; of "
        "the numbers of clusters that come again the best separated one",
        details=details,
    )


def outliers_finding(
    X: NDArray[np.floating], names: Sequence[str], name: str, group: NDArray[np.int64], *, question: Topic = "structure"
) -> Finding | None:
    """List the samples that are far from all others; None of fewer than 25 that are no near-copies.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    names : sequence of str
        Of the samples.
    name : str
        What the features are called.
    group : ndarray of int64 (n,)
        Near-copies have the same number: one of them stands for all, which are near one another whatever they show.
    question : str
        That it answers.
    """
    _, single = np.unique(group, return_index=True)
    if len(single) < _LEAST_FOR_OUTLIERS:
        return None
    scores = scores_by_others(X[single])
    assert scores is not None  # there are enough rows
    first, third = np.quantile(scores, [0.25, 0.75])
    # Tukey's outer fence: of normal scores one in half a million lies above.
    far = np.flatnonzero(scores > third + 3 * (third - first))
    far = far[np.argsort(-scores[far], kind="stable")]
    listed = [{"name": names[single[row]], "distance": round(float(scores[row]), 4)} for row in far.tolist()]
    text = f"none of {counted(len(X), 'sample')} is far from all others"
    if listed:
        text = (
            f"{counted(len(far), 'sample', of=len(X), verb='is')} far from all others, first {listed[0]['name']}: look "
        )
        text += f"whether {'it belongs' if len(far) == 1 else 'they belong'}"
    return Finding(
        question=question,
        verdict="outliers" if listed else "none found",
        text=text,
        figure=float(len(far)),
        n=len(X),
        basis=f"cosine to the nearest samples by {name}, above the outer fence",
        details={"outliers": listed},
    )
