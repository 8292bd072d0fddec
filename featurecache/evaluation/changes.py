"""What changed from one training of a task to the next, in records and in words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

import msgspec

from featurecache.evaluation.comparison import Comparison
from featurecache.store.result_schemas import HistoryBody
from featurecache.wording import counted

_FEATURES = ("fingerprint", "tap", "dtype", "views", "evaluated_on")
_features_of, _choice_of = attrgetter(*_FEATURES), attrgetter("head", "params", *_FEATURES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """A training against the one before it on the same task.

    Attributes
    ----------
    number : int
        Of this training, from 1.
    times_reported : int
        Trainings so far that were reported on some of the same samples, this one among them.
    before, now : HistoryBody
    num_relabelled : int
        Samples that both were evaluated on and that have another target now.
    num_shared : int
        Samples that both were evaluated on.
    score_before, score_now : float or None
        ``compared_by`` of these samples and their targets of now.
    compared_by : str or None
        The score that heads are chosen by, where predictions are enough for it; else the default of the kind.
    comparison : Comparison or None
        Of now with before; None where they share too few samples, or do not predict the same.
    """

    number: int
    times_reported: int
    before: HistoryBody
    now: HistoryBody
    num_relabelled: int
    num_shared: int
    score_before: float | None = None
    score_now: float | None = None
    compared_by: str | None = None
    comparison: Comparison | None = None

    @property
    def is_same_choice(self) -> bool:
        """Tell whether the same head with the same setting on the same features was chosen."""
        return _choice_of(self.before) == _choice_of(self.now)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "before": msgspec.to_builtins(self.before),
            "now": msgspec.to_builtins(self.now),
            "same_choice": self.is_same_choice,
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }

    def lines(self) -> list[str]:
        """Return what changed, for people."""
        before, now = self.before, self.now
        num_before, num_now = sum(before.counts.values()), sum(now.counts.values())
        lines = [
            f"training {self.number} on this task; the one before, of {before.time[:16].replace('T', ' ')} UTC, chose "
            f"{_in_words(before)}: {_figure(before)}"
        ]
        if self.is_same_choice and before.scores == now.scores and (num_before, self.num_relabelled) == (num_now, 0):
            return [*lines, "nothing changed: the same head, setting and figures"]
        labeled = f"labelled samples {num_before} -> {num_now}" if num_before != num_now else counted(num_now, "sample")
        # Of the samples that were evaluated, predictions and targets are kept; of the others none.
        of_shared = f" of the {self.num_shared} that both were evaluated on"
        relabelled = f", {self.num_relabelled}{of_shared} with another label" if self.num_relabelled else ""
        chosen = "the same head and setting" if self.is_same_choice else _in_words(now, before)
        lines.append(f"now {labeled}{relabelled}; {chosen}: {_figure(now)}")
        # Figures of two trainings are of other samples; only on those that they share do they compare heads.
        if self.score_before is not None and self.score_now is not None:
            verdict = "" if self.comparison is None else f": {self.comparison.verdict}"
            lines.append(
                f"on {counted(self.num_shared, 'sample')} that both were evaluated on: "
                f"{str(self.compared_by).replace('_', ' ')} {self.score_before:.3f} before, "
                f"{self.score_now:.3f} now{verdict}"
            )
        else:
            lines.append("they share no samples that both were evaluated on in the same way, and cannot be compared")
        return lines


def _in_words(about: HistoryBody, before: HistoryBody | None = None) -> str:
    params = ", ".join(f"{name}={value}" for name, value in about.params.items())
    head = f"{about.head} ({params})" if params else about.head
    if before is not None and _features_of(before) == _features_of(about):
        return f"{head} on the same features"
    views = "" if about.views is None else f", {counted(about.views, 'view')}"
    return f"{head} on {about.backbone} {about.tap} as {about.dtype}{views}"


def _figure(about: HistoryBody) -> str:
    """Write the first of its figures, with what it is of."""
    name = about.primary
    value, low, high, n = (about.scores.get(key) for key in (name, f"{name}_low", f"{name}_high", "n"))
    interval = "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    shown = "-" if value is None else f"{value:.3f}"
    return f"{about.reported} {name.replace('_', ' ')} {shown} ({interval}, {counted(round(n or 0), 'sample')})"
