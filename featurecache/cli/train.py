"""``featurecache train``: heads on cached features, chosen on validation data, looked at once on test data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table, progress_on_stderr, warn
from featurecache.errors import RequestError
from featurecache.specs import TASK_NOUN, BatchNormPolicy, FeatureAugmentation, TrainingPrecision

if TYPE_CHECKING:
    from featurecache.evaluation.training import TrainedHead, TrainingReport
    from featurecache.finetuning.training import FineTuning
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
    parser.add_argument("--tap", action="append", metavar="T", help="cached tap, or 'all'; repeat for several")
    parser.add_argument("--backbone", metavar="B", help="only features of this backbone")
    parser.add_argument(
        "--fingerprint", metavar="F", help="only features with this fingerprint (its beginning will do)"
    )
    parser.add_argument("--dtype", metavar="D", help="only features stored as this type")
    parser.add_argument(
        "--views", type=int, metavar="K", help="train on the K cached views of each sample; 0: on plain features only"
    )
    parser.add_argument("--save", metavar="NAME", help="keep the chosen head in DIR/heads/NAME")
    add_training_options(parser)
    add_layers_options(parser)
    parser.set_defaults(run=run)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add how heads are trained."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--head", action="append", metavar="H", help="head to train, or 'all' (default); repeat for several"
    )
    group.add_argument(
        "--tta", action="store_true", help="judge heads on the mean over the cached views of a sample (test-time views)"
    )
    group.add_argument(
        "--balanced", action="store_true", help="classes count alike, in choosing and (where a head can) in fitting"
    )
    group.add_argument("--jobs", type=int, default=-1, metavar="N", help="parallel fits (default: one per core)")
    group.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="hold at most so many gigabytes of features in memory, and read more from disk block by block (default: "
        "half of what is free)",
    )
    group.add_argument("--random-state", type=int, default=0, metavar="SEED")


def add_layers_options(parser: argparse.ArgumentParser) -> None:
    """Add how layers are trained on cached activations."""
    group = parser.add_argument_group(
        "layers", "of --head tail, layers:linear, layers:conv, layers:transformer, layers:mlp or python:MODULE:FACTORY"
    )
    group.add_argument(
        "--from-tap", action="append", metavar="T", help="cached activations that they are trained on; repeat for several"
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help="weights that the features were made with")
    group.add_argument("--epochs", type=int, metavar="N", help="rounds over the rows (default: 10, and at least 100 steps)")
    group.add_argument("--batch-size", type=int, default=32, metavar="N")
    group.add_argument(
        "--learning-rate", type=float, action="append", metavar="R", help="of new layers (0.001); several to choose from"
    )
    group.add_argument(
        "--pretrained-factor",
        type=float,
        action="append",
        metavar="F",
        help="learning rate of pretrained layers, as part of that (0.1); several to choose from",
    )
    group.add_argument("--layer-decay", type=float, default=1.0, metavar="F", help="each layer learns so much slower "
                       "than the one after it (1)")  # fmt: skip
    group.add_argument("--weight-decay", type=float, default=0.05, metavar="D", help="of AdamW (0.05)")
    group.add_argument("--warmup", type=float, default=0.1, metavar="S", help="share of the steps (0.1)")
    group.add_argument("--clip", type=float, default=1.0, metavar="L", help="longest gradient (1; 0: any)")
    group.add_argument("--patience", type=int, default=5, metavar="N", help="epochs without progress before it ends (5)")
    group.add_argument(
        "--start", action="append", choices=("fresh", "probe"), help="output layer at first: drawn, or a linear head"
    )
    group.add_argument(
        "--augment", action="append", choices=("none", *get_args(FeatureAugmentation)), help="of activations (none)"
    )
    group.add_argument(
        "--batch-norm", choices=get_args(BatchNormPolicy), default="frozen", help="statistics of norms (frozen)"
    )
    group.add_argument("--precision", choices=get_args(TrainingPrecision), default="float32")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    group.add_argument("--resume", action="store_true", help="go on with a training that was killed")
    group.add_argument("--checkpoint-seconds", type=float, default=30.0, metavar="S", help="between keeping (30)")


def run(args: argparse.Namespace) -> int:
    """Train and print the table."""
    from featurecache.store.store import FeatureStore, check_name

    if args.save:
        check_name("head", args.save)
    store = FeatureStore.open(args.cache)
    task = store.task(args.task)
    report = _train(store, task, args)
    saved = save_best(store, args.save, report) if args.save else None
    document = report.to_json()
    if args.json:
        print_json({**document, "saved": saved})
        return 0
    print_results(document)
    if saved:
        print_line(f"kept in {saved}; label new inputs with: {predict_command(saved, report.best, None)}")
    return 0


def train(store: FeatureStore, task: Task, sets: list[FeatureSet], args: argparse.Namespace) -> TrainingReport:
    """Train the heads that the options ask for."""
    from featurecache.evaluation.training import train_heads
    from featurecache.heads.registry import list_heads

    if args.memory is not None and not args.memory > 0:
        raise RequestError(f"--memory must be above 0, got {args.memory:g}")
    heads = [] if "all" in (args.head or ["all"]) else args.head
    with progress_on_stderr(quiet=args.quiet) as progress:
        progress.start("training heads", len(heads or list_heads(kind=task.kind)) * len(sets))
        return train_heads(
            store,
            task,
            sets,
            heads,
            tta=args.tta,
            balanced=args.balanced,
            n_jobs=args.jobs,
            memory=None if args.memory is None else int(args.memory * 1e9),
            random_state=args.random_state,
            on_result=lambda result: progress.advance(1),
        )


def _train(store: FeatureStore, task: Task, args: argparse.Namespace) -> TrainingReport:
    """Train heads on pooled features and layers on activations, as far as each is asked for."""
    from featurecache.finetuning.making import is_layers
    from featurecache.finetuning.training import train_layers

    layers = [head for head in args.head or () if is_layers(head)]
    args.head = [head for head in args.head or () if not is_layers(head)]
    if args.from_tap and not layers:
        raise RequestError("--from-tap names what layers are trained on; name them with --head tail, for example")
    if not layers:
        return train(store, task, _choose_sets(store, args), args)
    sets = _layers_sets(store, args)
    tuning = _tuning(args)
    report = train(store, task, _choose_sets(store, args), args) if args.head else None
    for feature_set in sets:
        if feature_set.dtype == "int8":
            warn(f"{feature_set} is stored as int8: what rounding loses is lost to the layers; extract with float16")
    with progress_on_stderr(quiet=args.quiet) as progress:
        progress.start("training layers", len(layers) * len(sets))
        found = train_layers(
            store,
            task,
            sets,
            layers,
            tuning,
            tta=args.tta,
            balanced=args.balanced,
            memory=None if args.memory is None else int(args.memory * 1e9),
            random_state=args.random_state,
            backbone=args.backbone,
            weights=args.weights,
            on_result=lambda result: progress.advance(1),
        )
    if report is not None:
        found.join(report)
    return found


def _layers_sets(store: FeatureStore, args: argparse.Namespace) -> list[FeatureSet]:
    where = {name: getattr(args, name) for name in ("backbone", "fingerprint", "dtype", "views")}
    taps = args.from_tap or args.tap
    if not taps:
        raise RequestError("name the cached activations that layers are trained on with --from-tap, see "
                           f"`featurecache ls {store.path}`; `featurecache inspect BACKBONE --tails` says which can be")  # fmt: skip
    return [store.find(tap=tap, **where) for tap in dict.fromkeys(taps)]


def _tuning(args: argparse.Namespace) -> FineTuning:
    from featurecache.backbones.torch_runtime import checked_device
    from featurecache.finetuning.training import FineTuning

    checked_device(args.device)
    names = "epochs batch_size layer_decay weight_decay warmup clip patience batch_norm precision device".split()
    given = {name: getattr(args, name) for name in (*names, "resume", "checkpoint_seconds")}
    for name in ("learning_rate", "pretrained_factor", "start"):
        if value := getattr(args, name):
            given[name] = tuple(dict.fromkeys(value))
    if args.augment:
        given["augment"] = tuple(None if name == "none" else name for name in dict.fromkeys(args.augment))
    return FineTuning(**given)


def save_best(store: FeatureStore, name: str, report: TrainingReport) -> str:
    """Keep the chosen head and return its folder."""
    from featurecache.deployment.saved import keep_head

    return str(keep_head(store, name, report.best))


def predict_command(saved: str, head: TrainedHead, weights: Path | None) -> str:
    """Return the command that labels new inputs with a kept head, in the way in which it was judged."""
    import shlex

    feature_set = head.feature_set
    text = feature_set.identity.preprocess.modality == "text"
    command = ["featurecache", "predict", saved, *(["NEW.csv", "--text-column", "NAME"] if text else ["NEW_IMAGES"])]
    if weights is not None or feature_set.about["weights_source"].startswith("file "):
        command += ["--weights", str(weights or "FILE")]
    if feature_set.identity.backbone.startswith("python:"):
        command += ["--backbone", feature_set.identity.backbone]
    if head.judged_on == "views":
        command += ["--tta", str(feature_set.num_views)]
    return shlex.join(command)


def print_results(document: dict[str, Any]) -> None:
    """Print the table of heads, the chosen one first, from what `TrainingReport.to_json` gives."""
    for item in document["left_out"][:5]:
        warn(f"{item['path']} is left out: {item['status']} ({item['reason']})")
    for head, reason in document["heads_left_out"].items():
        warn(f"head {head} is left out: it {reason}")
    best, titles = document["results"][0], document["figures"]
    primary, *others = titles
    looked_at = f"{best['reported']} {titles[primary]}"
    figures = [f"by {best['protocol']}", looked_at, "95 % interval", *(titles[name] for name in others), "seconds"]
    rows = [_row(result, primary, others) for result in document["results"]]
    print_table(["head", "tap", "settings", *figures, "against the chosen"], rows, numbers=figures)
    by = best["protocol"] + (", by balanced accuracy" if best["balanced"] else "")
    print_line(f"chosen by {by}: {best['head']} on {trained_on(best)}")
    print_line("against the chosen: on the rows by which it was chosen, paired, at 95 %; equivalent: within one point")
    print_line(f"the {best['reported']} figures are one look at rows on which nothing was chosen")
    if said := document["last_look"].get("calibration"):
        error = f"{said['expected_calibration_error']:.3f} on average (expected calibration error)"
        print_line(f"its probabilities there: log loss {said['log_loss']:.3f}, off by {error}")
    _print_outputs(document)
    if best["judged_on"] == "views":
        print_line(f"a sample was judged by the mean over its {best['views']} views, as `predict --tta` does")


def _print_outputs(document: dict[str, Any]) -> None:
    """Print how the chosen head did on each label or number, where there are several."""
    noun = TASK_NOUN[document["kind"]]
    found = document["last_look"][f"per_{noun}"]
    if document["kind"] == "classes" or len(found) == 1:
        return
    columns = [name for name in found[0] if name != noun]
    rows = [[each[noun], *(_shown(each[name]) for name in columns)] for each in found[:50]]
    print_table([noun, *(name.replace("_", " ") for name in columns)], rows, numbers=columns)


def _shown(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def trained_on(result: dict[str, Any]) -> str:
    """Name the features of a result: the tap, and the views."""
    return result["tap"] + (f", {result['views']} views" if result["views"] else "")


def _row(result: dict[str, Any], primary: str, others: list[str]) -> list[Any]:
    scores = result["test"] or result["validation"]
    return [
        result["head"],
        trained_on(result),
        ", ".join(f"{name}={value}" for name, value in result["params"].items()) or "-",
        f"{result['selection_score']:.3f}",
        f"{scores[primary]:.3f}",
        f"{scores[f'{primary}_low']:.3f} to {scores[f'{primary}_high']:.3f}",
        *(f"{scores[name]:.3f}" if abs(scores[name]) < 1000 else f"{scores[name]:.4g}" for name in others),
        f"{result['seconds']:.2f}",
        (result["against_chosen"] or {}).get("verdict", "-"),
    ]


def _choose_sets(store: FeatureStore, args: argparse.Namespace) -> list[FeatureSet]:
    where = {name: getattr(args, name) for name in ("backbone", "fingerprint", "dtype", "views")}
    if args.tta and args.views is None:
        where["views"] = _only_number_of_views(store, where)
    if args.tap is None:
        return [store.find(**where)]
    if "all" in args.tap:
        return store.select_sets(**where)
    sets = [feature_set for tap in dict.fromkeys(args.tap) for feature_set in store.select_sets(tap=tap, **where)]
    plain = [feature_set for feature_set in sets if feature_set.num_views is None]
    return plain if plain and where["views"] is None else sets


def _only_number_of_views(store: FeatureStore, where: dict[str, Any]) -> int:
    from featurecache.store.feature_sets import refuse_views_of_texts

    sets = store.select_sets(**where)
    refuse_views_of_texts(sets, option="--tta")
    numbers = sorted({s.num_views for s in sets if s.num_views is not None})
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise RequestError(f"{' and '.join(map(str, numbers))} views of each sample are cached; choose with --views K")
    raise RequestError(
        f"--tta judges heads on cached views, and {store.path} holds none; run `featurecache extract --views K`"
    )
