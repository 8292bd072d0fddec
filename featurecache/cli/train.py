"""``featurecache train``: heads on cached features, chosen on validation data, looked at once on test data."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.adapting import add_adapting_options, is_adapting, run_adapting
from featurecache.cli.imports import without_collection
from featurecache.cli.layers import add_layers_options, climb_depths, layers_request, print_ladder
from featurecache.cli.options import (
    add_jobs_option,
    add_memory_option,
    add_metric_option,
    add_threshold_options,
    called,
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
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.evaluation.calibration import Calibration
    from featurecache.evaluation.comparison import Comparison
    from featurecache.evaluation.training import TrainingReport
    from featurecache.finetuning.ladder import Ladder
    from featurecache.heads.thresholds import Thresholds
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task
    from featurecache.train import TrainingSettings


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "train",
        common="--task --head --tap --backbone --save --metric --balanced --depths --wide --json",
        help="train heads on cached features and compare them honestly",
        example="""
          featurecache train flowers.cache --task species
          featurecache train flowers.cache --task species --tap all --head logistic --head knn --save best
          featurecache train flowers.cache --task species --tap pre_logits --head logistic \\
              --head tail --from-tap layer3:none
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--task", metavar="T", help="needed where the cache has several")
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
    add_adapting_options(parser)


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
    add_metric_option(group)
    add_threshold_options(group)
    add_memory_option(group)
    group.add_argument(
        "--look-at-test",
        action="store_true",
        help="show what every head scores on the test split, not the chosen one alone: for the end, after all choices",
    )
    group.add_argument(
        "--keep",
        choices=("refitted", "evaluated"),
        help="which fit of the chosen head is kept: 'refitted' on every labelled sample with the chosen setting "
        "(default), or the one that the figures are of, 'evaluated' (default of trained layers)",
    )
    group.add_argument("--wide", action="store_true", help="a table with settings, all scores and seconds")
    group.add_argument(
        "--random-state", type=int, default=0, metavar="SEED", help="of splits, folds and fits (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Train and print the table."""
    with without_collection():
        from featurecache.deployment.kept import keep_head
        from featurecache.evaluation.history import remember_training
        from featurecache.finetuning.training import keeps_statistics
        from featurecache.store.feature_sets import type_warnings
        from featurecache.store.naming import check_name
        from featurecache.store.store import FeatureStore

    # A name that cannot be used must not cost a training.
    if args.save:
        check_name("head", args.save)
    store = FeatureStore.open(args.cache)
    task = store.only_task(args.task)
    if is_adapting(args):
        return run_adapting(store, task, args)
    ladder = climb_depths(store, task, args) if args.depths else None
    report = _train(store, task, args) if ladder is None else ladder.report
    # Where nobody chose, it is said which of several stored types was taken.
    if args.dtype is None:
        used = {head.feature_set.key: head.feature_set for head in report.heads}
        report.warnings += type_warnings(used.values(), store.feature_sets())
    # Before anything is printed or kept: the split has been looked at, whatever happens next.
    report.changes = remember_training(store, report)
    failures: list[OutputFailure] = []
    saved = None
    if args.save:
        memory = memory_of(args)
        saved = try_output(
            "--save", lambda: keep_head(store, args.save, report.best, keep=args.keep, memory=memory), failures
        )
    if args.json:
        print_json(
            report.to_json()
            | ({} if ladder is None else ladder.to_json())
            | {
                "frozen_statistics": any(map(keeps_statistics, report.heads)),
                "saved": None if saved is None else str(saved),
                "failed_outputs": [failure.text for failure in failures],
            }
        )
    else:
        _print(report, ladder, saved, args)
    return report_failures(failures, debug=args.debug)


def _print(report: TrainingReport, ladder: Ladder | None, saved: Path | None, args: argparse.Namespace) -> None:
    """Print the table, what was doubtful, and where the kept head is."""
    from featurecache.deployment.kept import describe_kept
    from featurecache.finetuning.training import keeps_statistics
    from featurecache.run import predict_command

    print_results(report, look_at_test=args.look_at_test, wide=args.wide)
    if ladder is not None:
        print_ladder(ladder.to_json()["ladder"])
    if any(map(keeps_statistics, report.heads)):
        print_line("norms keep the statistics of the pretrained weights; --batch-norm train lets them learn")
    print_warnings(report.warnings)
    if saved:
        print_line(f"kept in {saved}: {describe_kept(report.best, args.keep)}")
        print_line(f"label new inputs with: {predict_command(saved, report.best)}")


def _train(store: FeatureStore, task: Task, args: argparse.Namespace) -> TrainingReport:
    """Train heads on pooled features and layers on activations, as far as each is asked for."""
    from featurecache.evaluation.choosing import sets_to_train_on
    from featurecache.train import train

    layers = layers_request(store, task, args)
    # Whoever names layers alone wants no table of all heads beside them.
    only_layers = layers is not None and not args.head
    sets = [] if only_layers else sets_to_train_on(store, args.tap, args.head or (), tta=args.tta, **features_of(args))
    with progress_on_stderr(quiet=args.quiet) as progress:
        return train(store, task, sets, training_of(args), layers=layers, progress=progress)


def training_of(args: argparse.Namespace) -> TrainingSettings:
    """Return the settings that the options name."""
    from featurecache.train import TrainingSettings

    return called(args, TrainingSettings, heads=heads_of(args.head), n_jobs=args.jobs, memory=memory_of(args))


def print_results(report: TrainingReport, *, look_at_test: bool = False, wide: bool = False) -> None:
    """Print the table of heads, the chosen one first, and how the chosen one did.

    Parameters
    ----------
    report : TrainingReport
    look_at_test : bool
        Show what every head scored on the reported split, not the chosen one alone.
    wide : bool
        Show settings, all scores and seconds: more than 80 columns hold.
    """
    # The first few tell what is wrong; `info` lists all bad inputs.
    for path, (status, reason) in list(report.left_out.items())[:5]:
        warn(f"{path} is left out: {status} ({reason})")
    for head, reason in report.heads_left_out.items():
        warn(f"head {head} is left out: it {reason}")
    names = distinct_names([head.feature_set.to_json() for head in report.heads])
    comparisons = report.comparisons()
    _print_heads(report, names, comparisons, look_at_test=look_at_test, wide=wide)
    if num_kept := sum(head.result.is_kept for head in report.heads):
        print_line(
            f"{counted(num_kept, 'head', of=len(report.heads), verb='was')} fitted by an earlier training, and "
            "nothing has changed since"
        )
    print_line(_conclusion(report, names[0], comparisons))
    if report.best.result.thresholds is not None:
        print_line(_thresholds(report.best.result.thresholds, report.task.classes))
    _print_choice(report)
    reported = report.best.result.reported
    if look_at_test:
        print_line(f"choosing by the {reported} column spoils it: the best of many is too good by chance")
    elif report.changes is not None and (count := report.changes.times_reported) > 1:
        print_line(
            f"its {reported} rows have been looked at in {counted(count, 'training')}: what was changed in "
            "between because of "
            "their figure was chosen on them"
        )
    else:
        print_line(f"its {reported} rows were used this once, and nothing was chosen on them")
    details = report.details()
    if (measured := details.calibration) is not None:
        print_line(f"its probabilities there: {_calibration(measured)}")
    elif len(details.per_output) > 1:
        titles_of_outputs = list(details.per_output[0])
        # Not thousands of outputs.
        shown = [[_shown(value) for value in output.values()] for output in details.per_output[:50]]
        columns = [title.replace("_", " ") for title in titles_of_outputs]
        print_table(columns, shown, numbers=columns[1:])
    if report.best.evaluated_on == "views":
        num_views = report.best.eval_set.num_views or 1
        print_line(f"a sample was evaluated on the mean over its {counted(num_views, 'view')}, as `predict --tta` does")
    if report.changes is not None:
        for line in report.changes.lines():
            print_line(line)


def _print_heads(
    report: TrainingReport,
    names: Sequence[str],
    comparisons: Sequence[Comparison | None],
    *,
    look_at_test: bool,
    wide: bool,
) -> None:
    best, titles = report.best.result, report.measure.titles
    primary, *others = titles
    by, reported = f"by {best.protocol}", f"{best.reported} {titles[primary]}"
    # What is the same in all lines stands in the sentence below.
    columns = ["head", *(["tap"] if wide or len(set(names)) > 1 else []), by]
    numbers = [by, reported, "95 % interval", *(titles[name] for name in others), "seconds"]
    columns += [reported, "95 % interval"] if wide or look_at_test else []
    columns += [*(titles[name] for name in others), "seconds", "settings"] if wide else []
    rows = []
    for head, name, comparison in zip(report.heads, names, comparisons, strict=True):
        result, is_shown = head.result, look_at_test or head is report.best
        scores = (result.test or result.validation).to_json()
        cells = {
            "head": result.head,
            "tap": name,
            by: f"{result.selection_score:.3f}",
            reported: f"{scores[primary]:.3f}" if is_shown else "-",
            "95 % interval": _interval(scores[f"{primary}_low"], scores[f"{primary}_high"]) if is_shown else "-",
            **{
                titles[other]: _score(scores[other], report.measure.range_of(other)) if is_shown else "-"
                for other in others
            },
            "seconds": f"{result.seconds:.2f}",
            "settings": ", ".join(f"{key}={value}" for key, value in result.params.items()) or "-",
        }
        stands = "chosen" if head is report.best else "-" if comparison is None else comparison.text
        rows.append([*(cells[column] for column in columns), stands])
    print_table([*columns, "against the chosen"], rows, numbers=numbers)


def _conclusion(report: TrainingReport, name: str, comparisons: Sequence[Comparison | None]) -> str:
    """Say in one sentence what was chosen, how good it is, and what stands against the others."""
    from featurecache.evaluation.metrics import is_less_better, metric_of

    best, measure = report.best.result, report.measure
    scores, primary = (best.test or best.validation).to_json(), measure.primary
    feature_set = report.best.feature_set
    by = best.protocol
    if measure.metric != metric_of(measure.kind, None):
        by += f", by {measure.titles[primary]}" + (" (less is better)" if is_less_better(primary) else "")
    backbone = feature_set.identity.backbone
    where = name if backbone in name else f"{name} of {backbone}"
    interval = _interval(scores[f"{primary}_low"], scores[f"{primary}_high"])
    sentence = f"chosen by {by}: {best.head} on {where}, with {best.reported} {measure.titles[primary]} "
    sentence += f"{scores[primary]:.3f} ({interval}, {counted(round(scores['n'] or 0), 'sample')})"
    if verdicts := Counter(comparison.verdict for comparison in comparisons if comparison is not None):
        counts = [f"{count} {_IN_WORDS[verdict]}" for verdict, count in verdicts.items()]
        sentence += f"; of {counted(verdicts.total(), 'other')}: {', '.join(counts)}"
    return sentence


def _thresholds(thresholds: Thresholds, classes: Sequence[str]) -> str:
    """Say from which probability on something is predicted."""
    names = classes if thresholds.positive is None else [classes[thresholds.positive]]
    pairs = [f"{name} from {value:.3g}" for name, value in zip(names, thresholds.values, strict=True)]
    # A multilabel head may have hundreds of labels, each with its threshold.
    shown = ", ".join(pairs[:8]) + (", ..." if len(pairs) > 8 else "")
    return f"thresholds by {thresholds.rule}, chosen on the rows that chose the head: {shown}"


_IN_WORDS = {
    "better": "better on the rows that chose it",
    "equivalent": "equivalent (within one point)",
    "worse": "worse",
    "cannot tell": "not to be told apart from it",
    "the same answers": "with the same answers",
}


def _print_choice(report: TrainingReport) -> None:
    """Print the score on the rows that chose the head as what it is."""
    chosen = report.chosen_score()
    if chosen is None:
        return
    best, sign = report.best.result, report.measure.sign
    if any(sign * head.result.selection_score > sign * best.selection_score for head in report.heads[1:]):
        print_line(
            f"of the heads that chance does not tell from the highest by {best.protocol} it has the least log loss"
        )
    print_line(
        f"{chosen.observed:.3f} by {best.protocol} is of the one chosen among {chosen.num_heads}, so too high; "
        f"with the choice repeated on resamples: {chosen.corrected:.3f} ({_interval(chosen.low, chosen.high)})"
    )


def _calibration(measured: Calibration) -> str:
    text = f"log loss {measured.log_loss:.3f} ({_interval(measured.log_loss_low, measured.log_loss_high)})"
    # Not told of too few samples, where chance alone makes it large.
    if measured.expected_calibration_error is None:
        return text
    chance = f"chance alone makes it {measured.error_by_chance:.3f}"
    return f"{text}; expected calibration error {measured.expected_calibration_error:.3f}, where {chance}"


def _interval(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _score(value: float | None, limits: tuple[float, float]) -> str:
    if value is None:
        return "-"
    # In a unit: of metres, three decimals may leave nothing of what they show of millimetres.
    return f"{value:.3f}" if limits[1] <= 1 else f"{value:.4g}"


def _shown(value: str | float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
