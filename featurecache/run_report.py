"""What the main job found, trained and wrote, and its HTML report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import InputError, OutputFailure, shortened
from featurecache.wording import counted

_LEAST_ON_MAP, _MOST_ON_MAP = 10, 2000
"""Samples; of more, some are drawn at random."""

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from featurecache.advice.finding import Finding
    from featurecache.deployment.kept import Keep
    from featurecache.evaluation.training import TrainingReport
    from featurecache.extraction.report import ExtractionReport
    from featurecache.reporting.report import Gallery, SampleMap
    from featurecache.sources.source import Source
    from featurecache.store.listings import Listing


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What a run found, trained and wrote.

    Attributes
    ----------
    extraction : ExtractionReport
        What was computed, what was cached, and which inputs are bad.
    training : TrainingReport
        All trained heads, the chosen one first, with the warnings of the whole run.
    saved : Path or None
        Folder of the kept head; None where it could not be written.
    report : Path or None
        The HTML report, likewise.
    predict_command : str or None
        Command line that labels new inputs with the kept head.
    advice : tuple of Finding
        What to do next; see `advise`.
    failures : tuple of OutputFailure
        What could not be written, and why.
    """

    extraction: ExtractionReport
    training: TrainingReport
    saved: Path | None = None
    report: Path | None = None
    predict_command: str | None = None
    advice: tuple[Finding, ...] = ()
    failures: tuple[OutputFailure, ...] = ()

    def __repr__(self) -> str:
        from featurecache.advice.finding import summary

        lines = [f"RunReport({self.training!r}"]
        lines += [f"  next: {line}" for line in summary(self.advice)]
        lines += [f"  {name}: {path}" for name, path in (("report", self.report), ("kept in", self.saved)) if path]
        return "\n".join(lines) + ")"

    def _repr_html_(self) -> str:
        return self.training._repr_html_()

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the scores of the heads; see `TrainingReport.plot`.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
        """
        return self.training.plot(axes)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values, as ``featurecache run --json`` prints them."""
        return {
            "extraction": self.extraction.to_json(),
            **self.training.to_json(),
            "report": None if self.report is None else str(self.report),
            "saved": None if self.saved is None else str(self.saved),
            "advice": [finding.to_json() for finding in self.advice],
            "failed_outputs": [failure.text for failure in self.failures],
        }


def write_run_report(
    path: Path, done: RunReport, source: Source, named: str | None, command: str, keep: Keep | None
) -> Path:
    """Write the HTML report of a run.

    Parameters
    ----------
    path : Path
        Where to.
    done : RunReport
    source : Source
        What was extracted.
    named : str or None
        How somebody named it; None for samples in memory.
    command : str
        What makes the report again.
    keep : {"refitted", "evaluated"} or None
        Which fit of the best head was kept.

    Returns
    -------
    Path
        Of the report.
    """
    from featurecache.advice.finding import summary
    from featurecache.deployment.kept import describe_kept
    from featurecache.reporting.report import FinalEvaluation, ReportData, write_report
    from featurecache.store.overview import describe_features
    from featurecache.store.tasks import class_counts

    best, details = done.training.best, done.training.details()
    listing = done.extraction.store.listings.load(source.key)
    assert listing is not None, "the source was just extracted"
    y_true, names = _names_of_samples(done, source, listing)
    data = ReportData(
        title=source.key if named is None or "://" in named else Path(named).resolve().name,
        command=command,
        cache=str(done.extraction.store.path),
        feature_sets=[describe_features(feature_set) for feature_set in done.extraction.sets],
        training=done.training.to_json(),
        class_counts=class_counts(done.training.task),
        final=FinalEvaluation(
            split=best.result.reported,
            y_true=y_true,
            y_pred=best.result.y_pred,
            proba=best.result.proba,
            names=names,
            outputs=details.per_output,
            confusion=details.confusion,
            calibration=details.calibration,
        ),
        bad_inputs=done.extraction.bad,
        predict_command=done.predict_command,
        changes=[] if done.training.changes is None else done.training.changes.lines(),
        advice=summary(done.advice),
        kept=None if done.saved is None else describe_kept(best, keep),
        galleries=[*_galleries(done.advice), *_selection_mistakes(done)],
        map=_map_of(done),
    )
    write_report(path, data, read=_reader_of(source, listing))
    return path


def _reader_of(source: Source, listing: Listing) -> Callable[[str], bytes | None]:
    """Return what reads an image of a source by its name, as far as it is still there."""
    names = set(listing.paths) if source.modality == "image" else set()

    def read(name: str) -> bytes | None:
        try:
            # Without a stamp: an image that was edited since then is shown as it is now.
            return source.open(name, stamp=None) if name in names else None
        except InputError:
            return None

    return read


def _galleries(advice: Sequence[Finding]) -> list[Gallery]:
    """Return the samples that advice names and a reader should see."""
    from featurecache.reporting.report import Gallery

    found = []
    for finding in advice:
        if pairs := finding.details.get("pairs"):
            samples = [((pair["first"], pair["second"]), f"alike by {pair['similarity']:.3f}") for pair in pairs]
            title = f"near-copies: {counted(finding.details['num_pairs'], 'pair')}, the most alike first"
            found.append(Gallery(title, samples))
        if labels := finding.details.get("labels"):
            captions = [f"labelled {label['label']}, looks like {label['suggested']}" for label in labels]
            names = [(str(label["name"]),) for label in labels]
            title = f"labels worth checking: {len(labels)}, the least probable first"
            found.append(Gallery(title, list(zip(names, captions, strict=True))))
    return found


def _selection_mistakes(done: RunReport) -> list[Gallery]:
    """Return the mistakes on samples that chose the head: out of fold, or on the validation split."""
    from featurecache.evaluation.trained_head import selection_rows
    from featurecache.reporting.report import Gallery

    best, task = done.training.best, done.training.task
    y, y_pred = best.result.selection_y, best.result.selection_pred
    if task.kind != "classification" or not (wrong := (y != y_pred).nonzero()[0]).size:
        return []
    names = done.extraction.store.samples.uris_of(selection_rows(best)[wrong])
    captions = [f"{task.classes[y[k]]}, taken for {task.classes[y_pred[k]]}" for k in wrong]
    title = f"mistakes on samples that chose the head, none of which it was fitted on then: {len(wrong)} of {len(y)}"
    return [Gallery(title, [((name,), caption) for name, caption in zip(names, captions, strict=True)])]


def _map_of(done: RunReport) -> SampleMap | None:
    """Lay the samples of the task out by the features of the chosen head; none where these are no plain vectors."""
    import numpy as np

    from featurecache.advice.axes import plane_of
    from featurecache.evaluation.trained_head import reported_rows, selection_rows
    from featurecache.reporting.report import SampleMap

    best, task, store = done.training.best, done.training.task, done.extraction.store
    if task.kind != "classification" or best.feature_set.num_views is not None or not best.feature_set.is_pooled:
        return None
    features = best.feature_set.open()
    rows = np.sort(store.samples.rows_of(task.ids))
    rows = rows[features.usable(rows)]
    # More than a few thousand points are one blot.
    if len(rows) > _MOST_ON_MAP:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_ON_MAP, replace=False))
    if len(rows) < _LEAST_ON_MAP:
        return None
    tested, y_true = reported_rows(best)
    result = best.result
    mistaken = [tested[y_true != result.y_pred], selection_rows(best)[result.selection_y != result.selection_pred]]
    labels = [task.classes[label] for label in task.labels[task.indices_of(rows)]]
    title = (
        f"{counted(len(rows), 'sample')} by the first two principal axes of {best.feature_set.tap}; crosses are "
        "mistakes of "
        f"{result.head} on samples that it was not fitted on then"
    )
    X = features.read(rows).astype(np.float32).reshape(len(rows), -1)
    return SampleMap(title, plane_of(X), labels, np.isin(rows, np.concatenate(mistaken)))


def _names_of_samples(done: RunReport, source: Source, listing: Listing) -> tuple[NDArray[Any], list[str]]:
    """Return the targets of the reported samples, and what a reader calls each of them."""
    from featurecache.evaluation.trained_head import reported_rows

    rows, y_true = reported_rows(done.training.best)
    uris, listed = done.extraction.store.samples.uris_of(rows), set(listing.unique_rows.tolist())
    names = []
    for row, uri in zip(rows.tolist(), uris, strict=True):
        name = listing.paths_of([row])[0] if row in listed else uri
        if source.modality == "text" and row in listed:  # the number of a row tells a reader nothing
            name = f"{name}: {shortened(source.open(name, stamp=None).decode(errors='replace'))}"
        names.append(name)
    return y_true, names
