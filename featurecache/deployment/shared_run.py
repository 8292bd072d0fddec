"""Predictions of several workers into one table: they are started, awaited, and one process joins what they made."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from featurecache.deployment.parts import End, PartsGoneError, Plan
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.prediction_job import PredictionJob, PredictionReport
from featurecache.errors import ReportWarning, RequestError
from featurecache.extraction.engines import make_engine
from featurecache.extraction.engines.rank import rank_and_size
from featurecache.progress import Progress

# Seconds until it is looked again whether the process that writes the table has done so.
_PAUSE = 0.25


@dataclass(frozen=True)
class SharedRun:
    """A run whose parts are all finished; this process alone joins them, until it closes the run.

    Attributes
    ----------
    job : PredictionJob
    plan : Plan
    report : PredictionReport
        Of a worker.
    lease : ExitStack
        Holds off other processes that would join the parts.
    ranks : (str, int), optional
        As `rank_and_size` returns them, where something else has started the processes.
    """

    job: PredictionJob
    plan: Plan
    report: PredictionReport
    lease: ExitStack
    ranks: tuple[str, int] | None = None

    def predictions(self, warnings: list[ReportWarning]) -> Generator[Prediction, None, None]:
        """Yield the predictions in the order of the inputs; after the last, ``warnings`` has all that there are."""
        warnings += self.plan.warnings
        yield from self.job.joined(self.plan, self.report, warnings)

    def finish(self, out: Path, end: End) -> None:
        """Remove the parts, because the table is written.

        Parameters
        ----------
        out : Path
            The table.
        end : End
            What other processes say of the run.
        """
        if self.ranks is None:
            self.job.folder.remove()
        else:
            self.job.folder.finish(self.plan.name, out, end)
            self.job.folder.leave(*self.ranks)

    def close(self) -> None:
        """Let another process join the parts, if they are still there."""
        self.lease.close()


def run_shared(
    job: PredictionJob, engine: str, progress: Progress, *, out: Path | None = None, replace: bool = True
) -> SharedRun | End:
    """Have an engine predict all parts that are missing.

    Parameters
    ----------
    job : PredictionJob
        With a folder for parts.
    engine : str
    progress : Progress
    out : Path, optional
        The table that comes of it.
    replace : bool
        One that is there may be replaced.

    Returns
    -------
    SharedRun or End
        What this process is to write; or, with the engine ``rank``, how the run ended where another one has written.

    Raises
    ------
    UnknownNameError
        There is no such engine.
    RequestError
        The table is there already; samples in memory, with an engine of several processes.
    PartsGoneError
        Another command has finished the same run.
    """
    # Before the inputs are listed: a wrong name must not cost the reading of a source.
    chosen = make_engine(engine, progress, settings=job.settings)
    if engine == "rank" and out is None:
        raise RequestError(
            "with the engine rank several processes write one table: use the command line, featurecache predict HEAD "
            "INPUT --out FILE --engine rank"
        )
    ranks = rank_and_size(os.environ) if engine == "rank" else None
    plan = job.scan(progress)
    job, folder, report = job.planned(plan), job.folder, None

    def ended() -> End | None:
        return None if ranks is None or out is None else folder.end(plan.name, out)

    # Others may have done everything before this process began.
    if ended() is None:
        if ranks is not None and out is not None and out.exists() and not replace:
            folder.forget(plan.name)
            raise RequestError(f"--out {out} is there already; pass --replace, or name another place")
        try:
            report = [*chosen.run(job)][-1]
        except PartsGoneError:
            if ranks is None:
                raise
    while True:
        with ExitStack() as lease:
            is_mine = lease.enter_context(folder.leases.hold("join"))
            if ranks is not None and (end := ended()) is not None:
                folder.leave(*ranks)
                return end
            if is_mine:
                if report is None or not folder.has_plan(plan.name):
                    raise PartsGoneError(folder.path)
                return SharedRun(job, plan, report, lease.pop_all(), ranks)
        sleep(_PAUSE)
