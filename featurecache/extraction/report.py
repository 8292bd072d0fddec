"""What an extraction found and did, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from featurecache.errors import ReportWarning, unique_warnings
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.meter import Usage
from featurecache.extraction.worker_report import WorkerReport
from featurecache.ignored import IgnoredFiles
from featurecache.store.bad_inputs import bad_of_source
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.image_warnings import rows_recorded
from featurecache.store.listings import Listing
from featurecache.store.soundness import feature_warnings, float32_warning
from featurecache.store.store import FeatureStore
from featurecache.wording import counted


@dataclass
class ExtractionReport:
    """What a run found and did."""

    store: FeatureStore
    sets: list[FeatureSet]
    num_files: int
    num_samples: int
    num_extracted: int = 0
    """Samples that were computed now; with views, plain features and those of views count separately."""
    num_cached: int = 0
    """Samples that needed nothing, counted likewise."""
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)
    """Files that are no inputs by their name."""
    num_cut: int = 0
    """Samples that are longer than the network takes."""
    noun: str = "file"
    """What the inputs of the source are called."""
    bad: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Every bad input that the source holds: path -> (status, reason)."""
    postponed: dict[str, str] = field(default_factory=dict)
    """Files that changed or vanished during the run; the next run takes them."""
    runtime: str | None = None
    seconds: float = 0.0
    trial: dict[str, float] = field(default_factory=dict)
    """Inputs per second of each runtime that was tried before one was chosen."""
    startup_seconds: float = 0.0
    """Of those, until the network was loaded and its runtime ready."""
    warnings: list[ReportWarning] = field(default_factory=list)
    """What is doubtful, of the source, the backbone and the stored features."""
    usage: list[Usage] = field(default_factory=list)
    """Where the time went, for each pass over inputs: of the plain ones, and of views."""

    def __repr__(self) -> str:
        done = f"{self.num_extracted} extracted, {self.num_cached} cached, {len(self.bad)} bad"
        warnings = "".join(f"\n  warning: {warning.text}" for warning in self.warnings[:5])
        held = f"{counted(self.num_files, self.noun)}, {counted(self.num_samples, 'sample')}"
        return f"ExtractionReport({held}: {done}){warnings}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "cache": str(self.store.path),
            "features": [s.to_json() for s in self.sets],
            "files": self.num_files,
            "samples": self.num_samples,
            "extracted": self.num_extracted,
            "ignored_files": self.ignored.count,
            "cut": self.num_cut,
            "bad": [{"path": path, "status": status, "reason": why} for path, (status, why) in self.bad.items()],
            "postponed": self.postponed,
            "runtime": self.runtime,
            "trial": {name: round(rate, 2) for name, rate in self.trial.items()},
            "seconds": round(self.seconds, 3),
            "startup_seconds": round(self.startup_seconds, 3),
            "usage": [usage.to_json() for usage in self.usage],
            "warnings": [warning.to_json() for warning in self.warnings],
        }


def merge_reports(reports: Sequence[ExtractionReport]) -> ExtractionReport:
    """Return one report of extractions from one source into one cache by several backbones.

    Parameters
    ----------
    reports : sequence of ExtractionReport
        At least one. What the source holds is said by the last.
    """
    if len(reports) == 1:
        return reports[0]
    sets = [found for report in reports for found in report.sets]
    of_source = reports[-1].ignored.warnings()
    # Only those that a report has: where a type was asked for by its name there is nothing to say.
    of_types = [
        w for report in reports for s in report.sets if (w := float32_warning(report.store, s)) in report.warnings
    ]
    trial = {
        f"{name} ({report.sets[0].identity.backbone})": rate
        for report in reports
        for name, rate in report.trial.items()
    }
    return replace(
        reports[-1],
        sets=sets,
        num_extracted=sum(report.num_extracted for report in reports),
        num_cached=sum(report.num_cached for report in reports),
        # Of the same samples under each backbone: a sum would count them several times.
        num_cut=max(report.num_cut for report in reports),
        bad=dict(sorted(item for report in reports for item in report.bad.items())),
        postponed={path: why for report in reports for path, why in report.postponed.items()},
        runtime=next((report.runtime for report in reversed(reports) if report.runtime), None),
        seconds=sum(report.seconds for report in reports),
        startup_seconds=sum(report.startup_seconds for report in reports),
        trial=trial,
        warnings=unique_warnings([*of_source, *feature_warnings(sets), *of_types]),
        usage=[usage for report in reports for usage in report.usage],
    )


def report_extraction(job: ExtractionJob, listing: Listing, work: WorkerReport, *, seconds: float) -> ExtractionReport:
    """Return the report of a job that all workers have left.

    Parameters
    ----------
    job : ExtractionJob
    listing : Listing
        What the source held at the scan.
    work : WorkerReport
        The sum over all workers.
    seconds : float
        That all of it took.
    """
    store = FeatureStore(job.cache)  # the scan has checked it: to open it once more would walk all its folders again
    sets = [found for name in work.sets if (found := store.feature_set_at(PurePosixPath(name))) is not None]
    num_samples = len(listing.held)
    # By what is there now: another worker may have computed what one of them had to leave.
    left = np.array(list(work.postponed), np.int64)
    lacking = {row for s in sets for row in left[~s.open().held.contains(left)].tolist()}
    postponed = {row: reason for row, reason in work.postponed.items() if row in lacking}
    # And where ``auto`` stands for another type.
    warnings = [*listing.ignored.warnings(), *feature_warnings(sets, listing.held)]
    if job.settings.dtype == "auto":
        warnings += [w for s in sets if (w := float32_warning(store, s)) is not None]
    return ExtractionReport(
        store,
        sets,
        num_files=len(listing),
        num_samples=num_samples,
        num_extracted=work.num_rows,
        num_cached=(num_samples - len(postponed)) * len(job.variants) - work.num_rows,
        ignored=listing.ignored,
        num_cut=len(rows_recorded([c for s in sets for c in s.open().commits], "cut", listing.held)),
        noun="row" if job.opened_source.modality == "text" else "file",
        bad=bad_of_source(listing, sets),
        postponed=dict(postponed.values()),
        runtime=work.runtime,
        seconds=seconds,
        trial=dict(work.trial),
        startup_seconds=work.startup_seconds,
        warnings=unique_warnings(warnings),
        usage=list(work.usage),
    )
