"""``featurecache train``: heads on cached features, chosen on validation data, looked at once on test data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.layers import add_layers_options, climb_depths, layers_request, print_ladder
from featurecache.cli.options import (
    add_jobs_option,
    add_memory_option,
    features_of,
    heads_of,
    memory_of,
    verb_parser,
)
from featurecache.cli.output import (
    print_json,
    print_line,
    print_table,
    print_warnings,
    progress_on_stderr,
    report_failures,
    warn,
)
from featurecache.errors import OutputFailure, try_output
from featurecache.store.naming import distinct_names

if TYPE_CHECKING:
    from featurecache.evaluation.training import TrainedHead, TrainingReport
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task
    from featurecache.train import TrainingSettings


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "train",
        help="train heads on cached features and compare them honestly",
        example="""
          featurecache train flowers.cache --task species
          featurecache train flowers.cache --task species --tap all --head logistic --head knn --save best
          featurecache train flowers.cache --task species --tap pre_logits --head logistic \\
              --head tail --from-tap layer3:none
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR")
    parser.add_argument("--task", required=True, metavar="T")
    parser.add_argument(
        "--tap",
        action="append",
        metavar="T",
        help="cached tap, or 'all' (pooled ones, if there are any); repeat for several",
    )
    parser.add_argument("--backbone", metavar="B", help="only features of this backbone")
    parser.add_argument(
        "--fingerprint", metavar="F", help="only features with this fingerprint (its beginning will do)"
    )
    parser.add_argument("--dtype", metavar="D", help="only features stored as this type (default: the widest)")
    parser.add_argument(
        "--views", type=int, metavar="K", help="train on the K cached views of each sample; 0: on plain features only"
    )
    parser.add_argument("--save", metavar="NAME", help="keep the chosen head in DIR/heads/NAME")
    add_jobs_option(parser)
    add_training_options(parser)
    add_layers_options(parser)
    parser.set_defaults(run=run)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add how heads are trained."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--head",
        action="append",
        metavar="H",
        help="head to train, or 'all' (default); python:MODULE:FACTORY for a scikit-learn estimator of your own, or "
        "with --from-tap or --from-images for layers; repeat for several",
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="evaluate heads on the mean over the cached views of a sample (test-time views); they train on --views",
    )
    group.add_argument(
        "--balanced", action="store_true", help="classes count alike, in choosing and (where a head can) in fitting"
    )
    add_memory_option(group)
    group.add_argument(
        "--random-state", type=int, default=0, metavar="SEED", help="of splits, folds and fits (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Train and print the table."""
    from featurecache.deployment.saved import keep_head
    from featurecache.finetuning.training import keeps_statistics
    from featurecache.run import predict_command
    from featurecache.store.feature_sets import type_warnings
    from featurecache.store.naming import check_name
    from featurecache.store.store import FeatureStore

    if args.save:
        check_name("head", args.save)
    store = FeatureStore.open(args.cache)
    task = store.task(args.task)
    ladder = climb_depths(store, task, args) if args.depths else None
    report = _train(store, task, args) if ladder is None else ladder.report
    # Where nobody chose, it is said which of several stored types was taken.
    if args.dtype is None:
        used = {head.feature_set.key: head.feature_set for head in report.heads}
        report.warnings += type_warnings(used.values(), store.feature_sets())
    failures: list[OutputFailure] = []
    saved = try_output("--save", lambda: keep_head(store, args.save, report.best), failures) if args.save else None
    frozen_statistics = any(map(keeps_statistics, report.heads))
    if args.json:
        document = report.to_json() | ({} if ladder is None else ladder.to_json())
        failed = [failure.text for failure in failures]
        outputs = {"saved": None if saved is None else str(saved), "failed_outputs": failed}
        print_json({**document, "frozen_statistics": frozen_statistics, **outputs})
        return report_failures(failures, debug=args.debug)
    print_results(report)
    if ladder is not None:
        print_ladder(ladder.to_json()["ladder"])
    if frozen_statistics:
        print_line("norms keep the statistics of the pretrained weights; --batch-norm train lets them learn")
    print_warnings(report.warnings)
    if saved:
        print_line(f"kept in {saved}; label new inputs with: {predict_command(saved, report.best)}")
    return report_failures(failures, debug=args.debug)


def _train(store: FeatureStore, task: Task, args: argparse.Namespace) -> TrainingReport:
    """Train heads on pooled features and layers on activations, as far as each is asked for."""
    from featurecache.evaluation.choosing import sets_to_train_on
    from featurecache.train import train

    layers = layers_request(store, task, args)
    only_layers = layers is not None and not args.head
    sets = [] if only_layers else sets_to_train_on(store, args.tap, args.head or (), tta=args.tta, **features_of(args))
    with progress_on_stderr(quiet=args.quiet) as progress:
        return train(store, task, sets, training_of(args), layers=layers, progress=progress)


def training_of(args: argparse.Namespace) -> TrainingSettings:
    """Return the settings that the options name."""
    from featurecache.train import TrainingSettings

    return TrainingSettings(
        heads=heads_of(args.head),
        tta=args.tta,
        balanced=args.balanced,
        n_jobs=args.jobs or -1,
        memory=memory_of(args),
        random_state=args.random_state,
    )


def print_results(report: TrainingReport) -> None:
    """Print the table of heads, the chosen one first, and how the chosen one did."""
    for path, (status, reason) in list(report.left_out.items())[:5]:
        warn(f"{path} is left out: {status} ({reason})")
    for head, reason in report.heads_left_out.items():
        warn(f"head {head} is left out: it {reason}")
    best, titles = report.best.result, report.measure.titles
    primary, *others = titles
    numeric = [f"by {best.protocol}", f"{best.reported} {titles[primary]}", "95 % interval"]
    numeric += [*(titles[name] for name in others), "seconds"]
    names = distinct_names([head.feature_set.to_json() for head in report.heads])
    rows = [_row(report, head, name, primary, others) for head, name in zip(report.heads, names, strict=True)]
    print_table(["head", "tap", "settings", *numeric, "against the chosen"], rows, numbers=numeric)
    by = best.protocol + (", by balanced accuracy" if best.balanced else "")
    print_line(f"chosen by {by}: {best.head} on {names[0]}")
    print_line("against the chosen: on the rows by which it was chosen, paired, at 95 %; equivalent: within one point")
    print_line(f"the {best.reported} scores are of rows on which nothing was chosen, used this once")
    details = report.details()
    if (measured := details.calibration) is not None:
        error = f"{measured.expected_calibration_error:.3f} on average (expected calibration error)"
        print_line(f"its probabilities there: log loss {measured.log_loss:.3f}, off by {error}")
    elif len(details.per_output) > 1:
        titles_of_outputs = list(details.per_output[0])
        shown = [[_shown(value) for value in output.values()] for output in details.per_output[:50]]
        columns = [title.replace("_", " ") for title in titles_of_outputs]
        print_table(columns, shown, numbers=columns[1:])
    if report.best.evaluated_on == "views":
        num_views = report.best.eval_set.num_views
        print_line(f"a sample was evaluated on the mean over its {num_views} views, as `predict --tta` does")


def _shown(value: str | float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(report: TrainingReport, head: TrainedHead, name: str, primary: str, others: list[str]) -> list[str]:
    scores = (head.result.test or head.result.validation).to_json()
    comparison = report.against_chosen(head)
    return [
        head.result.head,
        name,
        ", ".join(f"{name}={value}" for name, value in head.result.params.items()) or "-",
        f"{head.result.selection_score:.3f}",
        f"{scores[primary]:.3f}",
        f"{scores[f'{primary}_low']:.3f} to {scores[f'{primary}_high']:.3f}",
        *(f"{scores[name]:.3f}" if abs(scores[name]) < 1000 else f"{scores[name]:.4g}" for name in others),
        f"{head.result.seconds:.2f}",
        "-" if comparison is None else comparison.verdict,
    ]
