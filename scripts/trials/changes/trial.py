"""Tries every change against a copy of one cache."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from typing import Any

from trials.changes.ground import Ground, Run, altered, make_ground
from trials.changes.harmless import must_not_matter
from trials.changes.noticed import must_notice
from trials.common import Options, Tally, for_each, problems_of, warm_up


def try_changes(options: Options) -> list[Tally]:
    """Try every change against a copy of one cache."""
    warm_up()
    ground = make_ground(options.scratch)
    noticed = Tally("changes that must be noticed were not, or left a stale row")
    harmless = Tally("changes that must not matter did")
    for tally, attempts in ((noticed, must_notice()), (harmless, must_not_matter())):
        names = list(attempts)[:: 3 if options.quick else 1]
        trials = [(ground, attempts[name], name) for name in names]
        for name, result in zip(names, for_each(trials, _attempt, jobs=options.jobs), strict=True):
            problems = problems_of(result)
            tally.add(problems, label=name)
            tally.notes.append(f"{'FAILED' if problems else 'ok':7}{name}")
        right = tally.num_trials - len(tally.violations)
        tally.notes.insert(0, f"{right} of {tally.num_trials} as promised:")
    return [noticed, harmless]


def _attempt(trial: tuple[Ground, Callable[[Ground], list[str]], str]) -> dict[str, Any]:
    ground, attempt, name = trial
    altered.update(change=None, forward=None)  # one process makes several attempts
    place = ground.scratch / hashlib.sha256(name.encode()).hexdigest()[:12]
    shutil.copytree(ground.source, place / "photos")
    # The same absolute path would be the same source; the copy is scanned anew, so its view is made first.
    shutil.copytree(ground.cache, place / "cache")
    own = Ground(place / "photos", place / "cache", ground.weights, place)
    problems = [] if Run(own.source, own.cache).go().num_extracted == 0 else ["moving the source recomputed something"]
    problems += attempt(own)
    shutil.rmtree(place)
    return {"problems": problems}
