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
    # Where no way is taken, the text names the one that came nearest.
    best = max(others, key=lambda head: head.agreement.value) if chosen is source else chosen
    agreed = best.agreement
    if chosen is not source:
        text = f"adapt to {report.domain} by {chosen.method}: near neighbours there agree by {agreed.value:.3f} "
        text += f"beyond chance, with the source alone by {source.agreement.value:.3f}"
    # Neighbours of one class always agree: nothing can be told by that.
    elif report.is_of_one_class:
        text = f"the head on the source gives nearly all of {report.domain} one class, so that nothing there tells "
        text += "whether adapting helps; take that head"
    elif not any(head.agreement.num_changed for head in others):
        text = f"every way to adapt to {report.domain} gives the same answers there as the head on the source; take "
        text += "that head"
    else:
        text = f"no way to adapt to {report.domain} is borne out there: the best, {best.method}, changes the agreement "
        text += f"of neighbours by {agreed.difference_text}; take the head on the source"
    return Finding(
        question="adaptation",
        verdict="source only" if chosen is source else chosen.method,
        text=text,
        figure=agreed.difference,
        low=agreed.low,
        high=agreed.high,
        n=report.num_target,
        basis=basis,
        next_command=None if chosen is source else next_command,
        details=details,
    )
