"""An answer of `advise`: one sentence, one figure with its interval and n, what it rests on, and the next command."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Topic = Literal["soundness", "when", "what", "how", "more_data", "diagnosis", "adaptation", "structure"]
TOPICS: tuple[str, ...] = tuple(topic for topic in get_args(Topic) if topic != "structure")
"""Of findings about a task; structure needs none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One answer.

    Attributes
    ----------
    question : str
        One of ``soundness, when, what, how, more_data, diagnosis, adaptation, structure``.
    verdict : str
        In a word or two: ``helps``, ``hurts``, ``cannot tell``, ...
    text : str
        One sentence for people.
    figure, low, high : float or None
        What the verdict rests on, with its 95 % interval.
    n : int
        Samples that the figure is of.
    basis : str
        What was compared, on what.
    next_command : str or None
        What to run next.
    is_fatal : bool
        Other answers mean nothing until this is mended.
    details : mapping
        Plain values for programs.
    """

    question: Topic
    verdict: str
    text: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    basis: str
    next_command: str | None = None
    is_fatal: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Where no interval can be given its ends are infinite.
        for name, value in (("low", self.low), ("high", self.high)):
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)

    def __repr__(self) -> str:
        command = f"\n  next: {self.next_command}" if self.next_command else ""
        return f"Finding({self.question}, {self.verdict}: {self.text}; n = {self.n}){command}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, all finite, and None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        fatal, details = values.pop("is_fatal"), finite(dict(values.pop("details")))
        return {**values, "fatal": fatal, "details": details}


def finite(value: Any) -> Any:
    """Return plain values with None for what is no finite number."""
    # JSON has no infinity and no NaN: what Python writes for them is read by few others.
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_ORDER = ("soundness", "what", "when", "how", "more_data", "diagnosis")


def summary(findings: Iterable[Finding], count: int = 3) -> list[str]:
    """Return the lines that matter most: what is unsound, then what can be done, then what is known.

    Parameters
    ----------
    findings : iterable of Finding
    count : int
    """
    # What is doubtful about the features is a warning of its own already.
    shown = [finding for finding in findings if finding.verdict != "none found" and "warning" not in finding.details]
    shown.sort(key=lambda finding: (_urgency(finding), _ORDER.index(finding.question)))
    return [
        f"{finding.text}: {finding.next_command}" if finding.next_command else finding.text for finding in shown[:count]
    ]


def _urgency(finding: Finding) -> int:
    """Return a number that is the smaller the sooner a reader should see the finding."""
    if finding.is_fatal:
        return 0
    if finding.question == "soundness":
        # Where features are weak, most labels that look wrong are right.
        if finding.verdict in ("labels to check", "outliers"):
            return 3
        # Copies that change no figure, say, are no reason to do anything.
        return 1 if finding.low is None or finding.low > 0 else 4
    if finding.next_command is not None:
        return 2 if finding.verdict != "cannot tell" else 3
    return 4
