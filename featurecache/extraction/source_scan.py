"""A scan by itself: the source is read and hashed once, and its listing waits in the cache for the workers to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from featurecache.errors import ReportWarning
from featurecache.extraction.scan import scan_into
from featurecache.progress import Progress, Silent, shows_progress
from featurecache.sources.opening import open_source
from featurecache.sources.source import check_source
from featurecache.store.listings import Listing
from featurecache.store.store import FeatureStore
from featurecache.wording import counted


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What a scan found.

    Attributes
    ----------
    store : FeatureStore
    listing : Listing
        Names, rows and problems of all that the source holds.
    num_read : int
        Inputs that were read; the others are as they were at the scan before.
    num_new : int
        Samples that the cache had never seen.
    noun : str
        What the inputs of the source are called.
    seconds : float
    """

    store: FeatureStore
    listing: Listing
    num_read: int
    num_new: int
    noun: str
    seconds: float

    def __repr__(self) -> str:
        files, samples = counted(self.num_files, self.noun), counted(self.num_samples, "sample")
        counts = f"{files}, {samples}, {len(self.listing.problems)} unreadable"
        return f"ScanReport({self.listing.root!r}: {counts})"

    @property
    def num_files(self) -> int:
        """All inputs, those that cannot be read among them."""
        return len(self.listing)

    @property
    def num_samples(self) -> int:
        """Inputs that can be read; copies count once."""
        return len(self.listing.held)

    @property
    def num_copies(self) -> int:
        """Inputs of the same bytes as another one."""
        return self.listing.num_readable - self.num_samples

    @property
    def warnings(self) -> list[ReportWarning]:
        """What somebody may miss in the listing."""
        return self.listing.ignored.warnings()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "cache": str(self.store.path),
            "root": self.listing.root,
            "files": self.num_files,
            "samples": self.num_samples,
            "copies": self.num_copies,
            "read": self.num_read,
            "new": self.num_new,
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.listing.problems.items()],
            "ignored_files": self.listing.ignored.count,
            "seconds": round(self.seconds, 3),
            "warnings": [warning.to_json() for warning in self.warnings],
        }


@shows_progress
def scan(
    source: Any,
    cache: str | Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    source_name: str = "memory",
    progress: Progress | None = None,
) -> ScanReport:
    """Read and hash a source once, and keep its listing in a cache; no network is needed.

    `extract` does it by itself. By itself it is for machines without a GPU: workers that come later find the listing,
    and identify no file again that is as it was.

    Parameters
    ----------
    source : path, str, or samples in memory
        As for `extract`.
    cache : path
        Folder of the cache; made when it does not exist.
    text_column, id_column : str, optional
        Of a table, the columns that hold and that name the texts.
    source_name : str
        Names samples in memory in the cache.
    progress : Progress, optional
        Told how much is read.

    Raises
    ------
    SourceError
        The source is missing or empty; no cache is made then.
    """
    started, progress = perf_counter(), progress or Silent()
    opened = open_source(source, text_column=text_column, id_column=id_column, name=source_name)
    check_source(opened)
    store = FeatureStore.create(cache)
    num_before = len(store.samples)
    listing, num_read = scan_into(store, opened, progress)
    return ScanReport(
        store=store,
        listing=listing,
        num_read=num_read,
        # Rows are given in the order in which samples are first seen.
        num_new=len(listing.held) - int(listing.held.count_below([num_before])[0]),
        noun="row" if opened.modality == "text" else "file",
        seconds=perf_counter() - started,
    )
