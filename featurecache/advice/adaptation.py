"""Adaptation: whether features of the source made like those of a target without labels give better answers there."""

from __future__ import annotations

from featurecache.advice.finding import Finding
from featurecache.evaluation.adapting import AdaptationReport


def adaptation_finding(
    report: AdaptationReport, *, name: str = "the features", next_command: str | None = None
) -> Finding:
    """Say which way to adapt the target bears out, if any.

    Parameters
    ----------
    report : AdaptationReport
        Of all ways.
    name : str
        What the features are called.
    next_command : str, optional
        That trains a head so.
    """
    source, chosen = report.heads[0], report.chosen
    others = [head for head in report.heads[1:] if head is not chosen]
    details = {"methods": [head.to_json() for head in report.heads], "domain": report.domain}
    basis = f"near neighbours in {report.domain} that get the same class, beyond chance, on {name}; "
    basis += "no label there was used"
    if chosen is source:
        best = max(others, key=lambda head: head.agreement)
        text = f"no way to adapt to {report.domain} is borne out there: the best, {best.method}, changes the agreement "
        text += f"of neighbours by {best.difference:+.3f} ({best.low:+.3f} to {best.high:+.3f}); take the head on the "
        text += "source"
        figure, low, high, verdict, command = best.difference, best.low, best.high, "source only", None
    else:
        text = f"adapt to {report.domain} by {chosen.method}: near neighbours there agree by {chosen.agreement:.3f} "
        text += f"beyond chance, with the source alone by {source.agreement:.3f}"
        figure, low, high, verdict, command = chosen.difference, chosen.low, chosen.high, chosen.method, next_command
    return Finding(
        question="adaptation",
        verdict=verdict,
        text=text,
        figure=figure,
        low=low,
        high=high,
        n=report.num_target,
        basis=basis,
        next_command=command,
        details=details,
    )


def cannot_adapt(reason: str, n: int) -> Finding:
    """Say why it cannot be told whether adapting helps.

    Parameters
    ----------
    reason : str
        What stands in the way.
    n : int
        Samples of the target.
    """
    text = f"cannot tell whether adapting helps: {reason}"
    return Finding(question="adaptation", verdict="cannot tell", text=text, n=n, basis="samples of the target")
