"""``featurecache train``: heads on cached features, chosen on validation data, looked at once on test data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.layers import add_layers_options, print_ladder, train_layers_too
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
from featurecache.specs import TASK_NOUN
from featurecache.store.naming import distinct_names

if TYPE_CHECKING:
    from featurecache.evaluation.training import TrainingReport
    from featurecache.run import TrainingSettings
    from featurecache.store.feature_sets import FeatureSet
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task


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
        help="judge heads on the mean over the cached views of a sample (test-time views); they train on --views",
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
    from featurecache.store.store import FeatureStore, check_name

    if args.save:
        check_name("head", args.save)
    store = FeatureStore.open(args.cache)
    task = store.task(args.task)
    report, ladder = train_layers_too(store, task, args, lambda: _train(store, task, args))
    if args.dtype is None:
        used = {head.feature_set.key: head.feature_set for head in report.heads}
        report.warnings += type_warnings(used.values(), store.feature_sets())
    failures: list[OutputFailure] = []
    saved = try_output("--save", lambda: keep_head(store, args.save, report.best), failures) if args.save else None
    document = report.to_json() | ({} if ladder is None else ladder.to_json())
    document["frozen_statistics"] = any(map(keeps_statistics, report.heads))
    if args.json:
        failed = [failure.text for failure in failures]
        print_json({**document, "saved": None if saved is None else str(saved), "failed_outputs": failed})
        return report_failures(failures, debug=args.debug)
    print_results(document)
    if ladder is not None:
        print_ladder(document["ladder"])
    if document["frozen_statistics"]:
        print_line("norms keep the statistics of the pretrained weights; --batch-norm train lets them learn")
    print_warnings(document["warnings"])
    if saved:
        print_line(f"kept in {saved}; label new inputs with: {predict_command(saved, report.best)}")
    return report_failures(failures, debug=args.debug)


def _train(store: FeatureStore, task: Task, args: argparse.Namespace) -> TrainingReport:
    from featurecache.run import train

    sets, settings = _choose_sets(store, args), training_of(args)
    with progress_on_stderr(quiet=args.quiet) as progress:
        return train(store, task, sets, settings, progress=progress)


def training_of(args: argparse.Namespace) -> TrainingSettings:
    """Return the settings that the options name."""
    from featurecache.run import TrainingSettings

    return TrainingSettings(
        heads=heads_of(args.head),
        tta=args.tta,
        balanced=args.balanced,
        n_jobs=args.jobs or -1,
        memory=memory_of(args),
        random_state=args.random_state,
    )


def print_results(document: dict[str, Any]) -> None:
    """Print the table of heads, the chosen one first, from what `TrainingReport.to_json` gives."""
    for item in document["left_out"][:5]:
        warn(f"{item['path']} is left out: {item['status']} ({item['reason']})")
    for head, reason in document["heads_left_out"].items():
        warn(f"head {head} is left out: it {reason}")
    best, titles = document["results"][0], document["figures"]
    primary, *others = titles
    looked_at = f"{best['reported']} {titles[primary]}"
    numeric = [f"by {best['protocol']}", looked_at, "95 % interval", *(titles[name] for name in others), "seconds"]
    names = distinct_names(document["results"])
    rows = [_row(result, name, primary, others) for result, name in zip(document["results"], names, strict=True)]
    print_table(["head", "tap", "settings", *numeric, "against the chosen"], rows, numbers=numeric)
    by = best["protocol"] + (", by balanced accuracy" if best["balanced"] else "")
    print_line(f"chosen by {by}: {best['head']} on {names[0]}")
    print_line("against the chosen: on the rows by which it was chosen, paired, at 95 %; equivalent: within one point")
    print_line(f"the {best['reported']} figures are one look at rows on which nothing was chosen")
    if calibration := document["last_look"].get("calibration"):
        error = f"{calibration['expected_calibration_error']:.3f} on average (expected calibration error)"
        print_line(f"its probabilities there: log loss {calibration['log_loss']:.3f}, off by {error}")
    _print_outputs(document)
    if best["judged_on"] == "views":
        print_line(f"a sample was judged by the mean over its {best['judged_views']} views, as `predict --tta` does")


def _print_outputs(document: dict[str, Any]) -> None:
    """Print how the chosen head did on each label or number, where there are several."""
    noun = TASK_NOUN[document["kind"]]
    found = document["last_look"][f"per_{noun}"]
    if document["kind"] == "classification" or len(found) == 1:
        return
    columns = [name for name in found[0] if name != noun]
    rows = [[each[noun], *(_shown(each[name]) for name in columns)] for each in found[:50]]
    print_table([noun, *(name.replace("_", " ") for name in columns)], rows, numbers=columns)


def _shown(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _row(result: dict[str, Any], name: str, primary: str, others: list[str]) -> list[Any]:
    scores = result["test"] or result["validation"]
    return [
        result["head"],
        name,
        ", ".join(f"{name}={value}" for name, value in result["params"].items()) or "-",
        f"{result['selection_score']:.3f}",
        f"{scores[primary]:.3f}",
        f"{scores[f'{primary}_low']:.3f} to {scores[f'{primary}_high']:.3f}",
        *(f"{scores[name]:.3f}" if abs(scores[name]) < 1000 else f"{scores[name]:.4g}" for name in others),
        f"{result['seconds']:.2f}",
        (result["against_chosen"] or {}).get("verdict", "-"),
    ]


def _choose_sets(store: FeatureStore, args: argparse.Namespace) -> list[FeatureSet]:
    from featurecache.heads.registry import needs_tokens
    from featurecache.store.feature_sets import pooled_if_any, prefer_wider

    where = features_of(args)
    if args.tta and args.views is None:
        where["views"] = 0  # --tta is about judging; what is trained on is for --views to say
    if args.tap is None or "all" in args.tap:
        found = store.select_sets(**where)
        found = found if any(map(needs_tokens, args.head or ())) else pooled_if_any(found)
        return prefer_wider(found) if args.tap or len(found) == 1 else [store.find(**where)]
    sets = [feature_set for tap in dict.fromkeys(args.tap) for feature_set in store.select_sets(tap=tap, **where)]
    plain = [feature_set for feature_set in sets if feature_set.num_views is None]
    return prefer_wider(plain if plain and where["views"] is None else sets)
