"""What ``featurecache train`` does for a target domain without labels: options, the table of ways, the kept head."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import features_of, memory_of, option_name
from featurecache.cli.output import print_json, print_line, print_table, progress_on_stderr
from featurecache.errors import RequestError
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.evaluation.adapting import AdaptationReport
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task

# Written out: the module that has them imports scikit-learn, for which `--help` should not wait.
_METHODS = ("auto", "source", "standardize", "coral", "subspace", "transport", "em", "bbse")
_OTHERS = (
    *("tta", "balanced", "metric", "threshold", "keep", "depths", "from_tap", "from_images", "views", "look_at_test"),
    *("wide", "minutes", "positive", "jobs"),
)
"""Options that say how other heads are trained."""


def add_adapting_options(parser: argparse.ArgumentParser) -> None:
    """Add how a head is adapted to a target domain.

    Parameters
    ----------
    parser : ArgumentParser
    """
    group = parser.add_argument_group("adapting", "a logistic head for a target domain that has no labels")
    group.add_argument(
        "--adapt",
        choices=_METHODS,
        help="auto takes the head on the source alone unless another way is borne out by the target's neighbours; em "
        "and bbse correct the shares of classes, and are wrong where anything else differs",
    )
    group.add_argument(
        "--target-domain",
        metavar="NAME",
        help="the target: a domain or a split of the task, or a pattern of paths of cached samples, such as 'webcam/*'",
    )


def is_adapting(args: argparse.Namespace) -> bool:
    """Tell whether a head is to be adapted, and refuse what does not go with that.

    Parameters
    ----------
    args : Namespace

    Raises
    ------
    RequestError
    """
    # Either alone would be ignored in silence.
    if (args.adapt is None) != (args.target_domain is None):
        given, other = ("--adapt", "--target-domain") if args.adapt else ("--target-domain", "--adapt")
        raise RequestError(f"{given} goes with {other}; name both, or neither")
    if args.adapt is None:
        return False
    if args.head and set(args.head) != {"logistic"}:
        raise RequestError(f"--adapt trains the logistic head, and no {args.head[0]}; leave --head out")
    # An option that says nothing here is refused: whoever gave it would believe that it counted.
    for name in _OTHERS:
        if getattr(args, name):
            raise RequestError(f"--adapt trains one plain logistic head; leave {option_name(name)} out")
    return True


def run_adapting(store: FeatureStore, task: Task, args: argparse.Namespace) -> int:
    """Adapt, print the table, and keep the chosen head.

    Parameters
    ----------
    store : FeatureStore
    task : Task
    args : Namespace
    """
    from featurecache.deployment.kept import keep_head
    from featurecache.evaluation.adapting import adapt_heads
    from featurecache.evaluation.choosing import sets_to_train_on
    from featurecache.run import predict_command

    # One set: to choose among several, labels of the target would be needed.
    sets = sets_to_train_on(store, args.tap, ("logistic",), **features_of(args))
    if len(sets) != 1:
        taps = ", ".join(found.tap for found in sets)
        raise RequestError(f"--adapt takes one feature set, and these are {len(sets)}: {taps}; name one with --tap")
    with progress_on_stderr(quiet=args.quiet) as progress:
        report = adapt_heads(
            store, task, sets[0], args.target_domain, args.adapt, random_state=args.random_state, progress=progress
        )
    saved: Path | None = None
    if args.save:
        head = report.chosen.head
        # Never refitted: the adaptation is in the fitted coefficients, and a new fit on the source would lose it.
        saved = keep_head(store, args.save, head, keep="evaluated", memory=memory_of(args), adaptation=report)
    if args.json:
        document: dict[str, Any] = {"task": task.name, **report.to_json()}
        print_json({**document, "saved": None if saved is None else str(saved)})
        return 0
    _print_report(report)
    if saved is not None:
        print_line(f"kept in {saved}: for samples of {report.domain}")
        print_line(f"label new inputs with: {predict_command(saved, report.chosen.head)}")
    return 0


def _print_report(report: AdaptationReport) -> None:
    columns = ["way", "neighbours agree", "more than the source", "accuracy there", ""]
    rows = []
    for found in report.heads:
        # The head on the source comes first, and is what the others are compared with.
        apart = "-" if found is report.heads[0] else found.agreement.difference_text
        accuracy = "-"
        # Only where the target has labels after all: told, and nothing is chosen by it.
        if found.accuracy is not None:
            value, low, high = found.accuracy
            accuracy = f"{value:.3f} ({low:.3f} to {high:.3f})"
        mark = "chosen" if found is report.chosen else ""
        rows.append([found.method, f"{found.agreement.value:.3f}", apart, accuracy, mark])
    print_table(columns, rows, numbers=columns[1:4])
    source = f"{counted(report.num_source, 'sample')} of the source, {report.num_target} of {report.domain}"
    alone, chosen = report.heads[0], report.chosen
    if chosen is alone and report.is_of_one_class:
        print_line(
            f"{source}: the head on the source alone; it gives nearly all of {report.domain} one class, so that "
            "nothing there tells whether adapting helps"
        )
    elif chosen is alone:
        print_line(f"{source}: the head on the source alone, as no adaptation is borne out by the target")
    else:
        print_line(
            f"{source}: {chosen.method}; near neighbours there agree by {chosen.agreement.value:.3f} beyond chance, "
            f"with the source alone by {alone.agreement.value:.3f}"
        )
    if report.num_labeled:
        print_line(
            f"{report.num_labeled} of them {'has a label' if report.num_labeled == 1 else 'have labels'}, by "
            "which nothing was chosen"
        )
