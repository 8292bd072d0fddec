"""What can be said of samples that have no labels: their structure, and which to label first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurecache.advice.active_learning import label_next_finding, typical_samples
from featurecache.advice.axes import MapName, main_axes
from featurecache.advice.evidence import role_of
from featurecache.advice.finding import Finding
from featurecache.advice.structure import MAX_ROWS, structure_findings
from featurecache.errors import RequestError, command_line
from featurecache.evaluation.near_copies import near_copies
from featurecache.heads.preparation import unit_rows
from featurecache.store.feature_sets import FeatureSet, pooled_if_any, prefer_wider
from featurecache.store.samples import Rows, some_rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task, read_views
from featurecache.wording import counted

# Each is compared with all others, which takes the square of so many.
_MOST_COMPARED = 30_000
_MOST_CANDIDATES = 20_000
"""Samples without a label that are chosen from; more are sampled."""


def unlabelled_findings(
    store: FeatureStore,
    sets: Sequence[FeatureSet] | None = None,
    *,
    structure: bool = True,
    count: int | None = None,
    map_by: MapName = "pca",
    random_state: int = 0,
) -> list[Finding]:
    """Say what there is in the samples of a cache, and which to label first.

    Parameters
    ----------
    store : FeatureStore
    sets : sequence of FeatureSet, optional
        Of which the first is taken; when left out, the default tap of a pretrained network.
    structure : bool
        Look for clusters, near-copies and outliers.
    count : int, optional
        Name so many samples to label first.
    map_by : {"pca", "umap"}
        As for `plane_of`.
    random_state : int
        Of samples and clusters.

    Raises
    ------
    RequestError
        A cache without pooled features of a pretrained network, or with fewer than 20 samples of them.
    """
    feature_set = default_set(store, sets)
    features = feature_set.open()
    rows = some_rows(
        features.rows[features.usable(features.rows)], MAX_ROWS if count is None else _MOST_CANDIDATES, random_state
    )
    if structure and len(rows) < 20:
        raise RequestError(
            f"{store.path} holds {counted(len(rows), 'sample')} with features; structure takes 20 at least"
        )
    name = f"{feature_set.tap} of {feature_set.identity.backbone}"
    X, names = read_views(features, rows)[:, 0], store.samples.uris_of(rows)
    found = []
    if structure:
        some = some_rows(np.arange(len(rows)), MAX_ROWS, random_state)
        some_names = [names[index] for index in some]
        found += structure_findings(X[some], some_names, name=name, map_by=map_by, random_state=random_state)
    if count is not None:
        chosen = typical_samples(unit_rows(main_axes(X)), np.empty(0, np.int64), count, random_state=random_state)
        command = command_line("task", "add", store.path, "TASK", "LABELS.csv")
        names = [names[index] for index in chosen]
        found.append(label_next_finding(names, 0, 0, len(rows), next_command=command))
    return found


def near_copy_groups(store: FeatureStore) -> dict[int, str]:
    """Return a name for each group of samples that are nearly the same, by row; samples without such are left out.

    Parameters
    ----------
    store : FeatureStore

    Raises
    ------
    RequestError
        A cache without pooled features of a pretrained network, or with too many samples to compare all.
    """
    feature_set = default_set(store)
    features = feature_set.open()
    rows = features.rows[features.usable(features.rows)]
    if len(rows) > _MOST_COMPARED:
        raise RequestError(
            f"{counted(len(rows), 'sample', verb='is')} too many to compare each with all others (at most "
            f"{_MOST_COMPARED:,}); name "
            "what belongs together with --group-column"
        )
    copies = near_copies(read_views(features, rows)[:, 0])
    sizes = np.bincount(copies.group)
    # By content, so that the groups of the same samples have the same names in every cache.
    first: dict[int, str] = {}
    for row, group in zip(rows.tolist(), copies.group.tolist(), strict=True):
        first[group] = min(first.get(group, "~"), store.samples.ids[np.array([row])][0].tobytes().hex())
    pairs = zip(rows.tolist(), copies.group.tolist(), strict=True)
    return {row: f"near-copies {first[group]}" for row, group in pairs if sizes[group] > 1}


def rows_without_label(store: FeatureStore, task: Task, feature_set: FeatureSet, random_state: int = 0) -> Rows:
    """Return the rows with features that a task has no label for; of many some.

    Parameters
    ----------
    store : FeatureStore
    task : Task
    feature_set : FeatureSet
    random_state : int

    Raises
    ------
    RequestError
        There are none.
    """
    features = feature_set.open()
    rows = np.setdiff1d(features.rows[features.usable(features.rows)], store.samples.rows_of(task.ids))
    if not len(rows):
        backbone = feature_set.identity.backbone
        raise RequestError(
            f"every cached sample has a label of task {task.name!r}; extract those without labels into the same cache "
            f"first: {command_line('extract', 'FOLDER', '--cache', store.path, '--backbone', backbone)}"
        )
    return some_rows(rows, _MOST_CANDIDATES, random_state)


def default_set(store: FeatureStore, sets: Sequence[FeatureSet] | None = None) -> FeatureSet:
    """Return the default tap of a pretrained network, or else any pooled one.

    Parameters
    ----------
    store : FeatureStore
    sets : sequence of FeatureSet, optional
        To choose from; all of the cache when left out.

    Raises
    ------
    RequestError
        There is none.
    """
    found = prefer_wider(
        pooled_if_any([candidate for candidate in sets or store.feature_sets() if candidate.num_views is None])
    )
    able = [candidate for candidate in found if role_of(candidate) == "pretrained" and candidate.is_pooled]
    if not able:
        raise RequestError(f"{store.path} holds no features of a pretrained network; run `featurecache extract` first")
    return next((candidate for candidate in able if candidate.tap.startswith("pre_logits")), able[0])
