"""What to transfer, when and how, and whether more data would help: what people call, for one cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurecache.advice.advisor import Advisor
from featurecache.advice.arms import ArmSource, make_arms, missing_arms
from featurecache.advice.axes import MapName
from featurecache.advice.commands import Commands
from featurecache.advice.evidence import fit_probes, gather, role_of
from featurecache.advice.finding import TOPICS, Finding
from featurecache.advice.layers_scan import LayersScan
from featurecache.advice.layers_scan import keep_layers as cache_layers
from featurecache.advice.unlabelled import default_set, unlabelled_findings
from featurecache.errors import RequestError
from featurecache.evaluation.domains import cached_rows_of_domain, rows_of_domain
from featurecache.heads.threads import one_thread
from featurecache.progress import shows_progress
from featurecache.sources.opening import SourceSpec, open_spec, table_options
from featurecache.specs import as_tuple
from featurecache.store.feature_sets import FeatureSet, pooled_if_any, prefer_wider
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

if TYPE_CHECKING:
    from featurecache.progress import Progress


@shows_progress
def advise(
    cache: str | Path | FeatureStore,
    task: str | None = None,
    *,
    only: str | Sequence[str] = (),
    target_domain: str | None = None,
    label_next: int | None = None,
    unlabelled: bool = False,
    source: str | Path | SourceSpec | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    source_options: Sequence[str] = (),
    minutes: float | None = None,
    layers_scan: bool = False,
    keep_layers: bool = False,
    backbone: str | None = None,
    weights: str | Path | None = None,
    look_at_test: bool = False,
    map_by: MapName = "pca",
    sets: Sequence[FeatureSet] | None = None,
    random_state: int = 0,
    n_jobs: int = -1,
    progress: Progress | None = None,
) -> list[Finding]:
    """Tell what to transfer, when, and how, and whether more data would help, from cached features.

    Everything is judged on the samples that are not for testing, out of fold.

    Parameters
    ----------
    cache : path or FeatureStore
    task : str, optional
        Name of the task; may be left out where there is only one, and with ``unlabelled`` or ``label_next``.
    only : sequence of str
        Questions to answer: ``soundness``, ``when``, ``what``, ``how``, ``more_data``, ``diagnosis``, and with a target
        domain ``adaptation``; all when empty.
    target_domain : str, optional
        Samples of the target, such as another camera: a domain of the task, a split (``validation``), or a pattern of
        their paths (``webcam/*``). They are left out of fitting, and errors there are compared with errors out of fold;
        of samples without labels it is told whether adapting to them helps.
    label_next : int, optional
        Name so many of the cached samples without a label, the most useful to label first.
    unlabelled : bool
        Say what there is in the samples without looking at labels: clusters, near-copies, outliers.
    source : path or SourceSpec, optional
        Where the samples come from, for the commands that are named, for ``minutes`` and for ``layers_scan``.
    text_column, id_column : str, optional
        Of a source that is a table.
    source_options : sequence of str
        Options of the command line with which the source is opened, for the commands that are named; those that
        ``text_column`` and ``id_column`` stand for when empty.
    minutes : float, optional
        Make what a pretrained network is to be compared with and is not cached, as far as that is predicted to take no
        longer; what is left is listed with its seconds.
    layers_scan : bool
        Compare all blocks of the network, computed for up to 2,000 of the inputs in ``source`` and not kept, instead
        of what is cached.
    keep_layers : bool
        Compute them for all inputs instead, and cache them.
    backbone, weights : str and path, optional
        What a record cannot decide for that: agrees to run the code or to open the path of a network of that name, and
        names the file with its weights.
    look_at_test : bool
        Tell errors of the test split too; what is chosen after that is no longer tested by it.
    map_by : {"pca", "umap"}
        What the map of ``unlabelled`` is laid out by: principal axes, or neighbours (extra ``map``).
    sets : sequence of FeatureSet, optional
        What may be transferred; all plain, pooled features of pretrained networks when left out.
    random_state : int
        Of folds, samples and resamples.
    n_jobs : int
        Threads, as in joblib; results don't depend on it.
    progress : Progress, optional
        Told of each feature set.

    Returns
    -------
    list of Finding
        Soundness first; where something fatal is found there, nothing else.

    Raises
    ------
    RequestError
        An unknown question or split, or a cache without pooled features of a pretrained network.
    """
    store = cache if isinstance(cache, FeatureStore) else FeatureStore.open(cache)
    only = as_tuple(only)
    _check_request(only, target_domain, minutes, layers_scan=layers_scan, source=source)
    if task is None and not unlabelled and label_next is None:
        task = _only_task(store)
    if task is None:
        # Without a task, these would be passed over in silence.
        if only or target_domain is not None or minutes is not None or layers_scan:
            raise RequestError(
                "--only, --target-domain, --minutes and --layers-scan are for questions about a task; name it with "
                "--task"
            )
        return unlabelled_findings(
            store, sets, structure=unlabelled, count=label_next, map_by=map_by, random_state=random_state
        )
    labels = store.task(task)
    target = None if target_domain is None else (target_domain, _target_rows(store, labels, target_domain, sets))
    not_made: dict[str, float] = {}
    origin = None if source is None else ArmSource(source, text_column, id_column)
    if minutes is not None and origin is not None:
        not_made = make_arms(store, missing_arms(store, default_set(store, sets), origin), origin, minutes, progress)
    layers = LayersScan(origin, backbone, weights) if layers_scan and origin is not None else None
    if layers is not None and keep_layers:
        cache_layers(store, default_set(store, sets), layers, progress)
        layers = None  # they are among the cached sets now, and are compared as these are
    # The target takes no part in fitting, so that errors there are those of new samples.
    left_out = None if target is None else target[1]
    evidence = gather(labels, _sets_to_compare(store, sets), random_state=random_state, but_not=left_out)
    # Probes are fitted side by side: more threads of linear algebra in each would wait for one another.
    with one_thread():
        arms = fit_probes(evidence, store, n_jobs=n_jobs, progress=progress)
        url = source.url if isinstance(source, SourceSpec) else source
        options = source_options or _column_options(source, text_column, id_column)
        advisor = Advisor(
            store=store,
            evidence=evidence,
            arms=arms,
            target=target,
            commands=Commands(store, task, url, options),
            not_made=not_made,
            layers=layers,
            look_at_test=look_at_test,
            only=only,
            random_state=random_state,
            progress=progress,
        )
        findings = advisor.findings()
    if label_next is not None:
        findings.append(advisor.label_next(label_next))
    if unlabelled:
        findings += unlabelled_findings(store, sets, map_by=map_by, random_state=random_state)
    return findings


def _column_options(
    source: str | Path | SourceSpec | None, text_column: str | None, id_column: str | None
) -> Sequence[str]:
    if isinstance(source, SourceSpec):
        return table_options(open_spec(source))
    columns = {"--text-column": text_column, "--id-column": id_column}
    return [word for option, column in columns.items() if column is not None for word in (option, column)]


def _check_request(
    only: Sequence[str],
    target_domain: str | None,
    minutes: float | None,
    *,
    layers_scan: bool,
    source: str | Path | SourceSpec | None,
) -> None:
    """Raise `RequestError` for options that mean nothing, or nothing without another, before anything is computed."""
    for topic in only:
        if topic not in TOPICS:
            raise RequestError(f"unknown question {topic!r}; known: {', '.join(TOPICS)}")
    if "adaptation" in only and target_domain is None:
        raise RequestError("adaptation is to samples of a target; name them with --target-domain")
    if minutes is not None and not 0 <= minutes < float("inf"):
        raise RequestError(f"minutes must be 0 or more, got {minutes:g}")
    if minutes is not None and source is None:
        raise RequestError(
            "--minutes makes what is missing from the samples themselves; say with --source where they come from"
        )
    if layers_scan and source is None:
        raise RequestError("--layers-scan computes layers of the samples themselves; say with --source where they are")


def _only_task(store: FeatureStore) -> str:
    """Return the name of the task where there is one alone."""
    if not store.task_names():
        raise RequestError(
            f"{store.path} holds no task; ask for what can be said without one (--unlabelled, --label-next N)"
        )
    return store.only_task().name


def _sets_to_compare(store: FeatureStore, sets: Sequence[FeatureSet] | None) -> list[FeatureSet]:
    """Return the plain sets of the cache that are compared: those that were chosen, and all without transfer."""
    plain = prefer_wider(pooled_if_any([found for found in store.feature_sets() if found.num_views is None]))
    # Transfer has to beat what does without it, whatever sets somebody chose to transfer from.
    keys = {found.key for found in (plain if sets is None else sets)}
    compared = [found for found in plain if found.key in keys or role_of(found) != "pretrained"]
    if not any(role_of(found) == "pretrained" for found in compared):
        raise RequestError(f"{store.path} holds no features of a pretrained network; run `featurecache extract` first")
    return compared


def _target_rows(store: FeatureStore, task: Task, domain: str, sets: Sequence[FeatureSet] | None) -> Rows:
    """Return the rows of a target that have a label; none where only samples without one are of it."""
    try:
        return rows_of_domain(store, task, domain)
    except RequestError:
        try:
            cached = cached_rows_of_domain(store, task, domain, default_set(store, sets).open())
        except RequestError:
            cached = np.empty(0, np.int64)
        # A target without labels is no mistake where its samples are cached: to adapt to it takes none of their labels.
        if not len(np.setdiff1d(cached, store.samples.rows_of(task.ids))):
            raise
        return np.empty(0, np.int64)
