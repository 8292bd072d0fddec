"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, get_args

from featurecache.errors import RequestError
from featurecache.specs import DtypeChoice, ExtractionSettings, RuntimeName, ViewSpec

if TYPE_CHECKING:
    from featurecache.evaluation.choosing import FeatureChoice
    from featurecache.evaluation.configuring import HeadLike
    from featurecache.extraction.recomputation import Inputs

Made = TypeVar("Made")


def verb_parser(
    verbs: Any, name: str, *, help: str, example: str, quiet: bool = False, common: str | Sequence[str] = ""
) -> argparse.ArgumentParser:
    """Add a verb with the options that every verb has.

    Parameters
    ----------
    verbs
        What `argparse` gives for sub-commands.
    name, help
        The verb, and what it does.
    example
        A command that works, for the end of its help.
    quiet
        The verb draws progress, and has an option not to.
    common
        Options that stand first in its help, in this order; all others stand under headings.
    """
    # Raw, or argparse would join the lines of the example.
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n" + textwrap.indent(inspect.cleandoc(example), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    words = common.split() if isinstance(common, str) else common
    parser.common = tuple(words)  # type: ignore[attr-defined]  # of the parser of our command line
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def add_renamed_option(parser: Any, name: str, earlier: str, **settings: Any) -> None:
    """Add an option that had another name, which is taken for one more release and stands in no help.

    Parameters
    ----------
    parser
        A parser or a group of one.
    name, earlier
        The option now, and before.
    **settings
        As for `argparse.ArgumentParser.add_argument`.
    """
    parser.add_argument(name, **settings)
    # Both names set one value, so that giving both is giving one twice.
    settings |= {"dest": name.removeprefix("--").replace("-", "_"), "help": argparse.SUPPRESS}
    parser.add_argument(earlier, **(settings | {"default": argparse.SUPPRESS}))


def option_name(field: str) -> str:
    """Return the option that sets a field of the parsed arguments."""
    return "--" + field.replace("_", "-")


def add_jobs_option(parser: Any) -> None:
    """Add how many cores are used, whatever for."""
    add_renamed_option(
        parser,
        "--jobs",
        "--workers",
        type=_num_jobs,
        metavar="N",
        help="threads that decode, or fits, at the same time (default: one per core)",
    )


def add_device_option(parser: Any) -> None:
    """Add where a network computes."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; auto (default): the GPU that is there"
    )


def heads_of(names: Sequence[str] | None) -> tuple[HeadLike, ...]:
    """Return the heads that ``--head`` names; none where all are asked for."""
    from featurecache.deployment.python_heads import python_head

    # No names stand for all heads of the kind, which is known later: with the task.
    if "all" in (names or ["all"]):
        return ()
    return tuple(python_head(name) if name.startswith("python:") else name for name in names or ())


def add_weights_file_options(parser: Any, *, help: str = "weights that the features were made with") -> None:
    """Add a weights file, and which of its sections is loaded."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help=help)
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="part of the file to load where several fit, by its dotted name: state_dict_ema, teacher.backbone",
    )


def add_head_options(parser: argparse.ArgumentParser) -> None:
    """Add a saved head, and what its backbone needs to be made again."""
    parser.add_argument("head", type=Path, metavar="HEAD", help="folder of a saved head, DIR/heads/NAME")
    add_weights_file_options(parser)
    parser.add_argument(
        "--backbone",
        metavar="B",
        help="agree to run the code of a python:, hub: or file: backbone; folder of an hf: one",
    )
    parser.add_argument("--layers", metavar="L", help="agree to run the code of python: layers, or of a python: head")


def source_argument(text: str) -> str | Path:
    """Return a source as it was named: a path, or a URL, of whose slashes a path would drop one."""
    return text if "://" in text else Path(text)


def add_table_options(parser: Any, *, paths: bool = True) -> None:
    """Add which columns of a table hold and name the samples.

    Parameters
    ----------
    parser
    paths
        Its ``--path-column`` is about the source; else the verb has one of its own, for labels.
    """
    parser.add_argument("--text-column", metavar="NAME", help="SOURCE is a table; this column has the texts")
    parser.add_argument("--id-column", metavar="NAME", help="column that names the rows (default: their numbers)")
    if paths:
        parser.add_argument(
            "--path-column", metavar="NAME", help="SOURCE is a table; this column has paths or URLs of images"
        )
        add_form_options(parser)
    parser.add_argument(
        "--allow-local-urls", action="store_true", help="URLs in a table may name this machine and its network"
    )


def add_form_options(parser: Any) -> None:
    """Add how a table is written."""
    parser.add_argument(
        "--delimiter", metavar="CHAR", help="what stands between columns (default: found; tab is written as \\t)"
    )
    parser.add_argument(
        "--no-header", action="store_true", help="the first row is no header: columns are called 1, 2 and so on"
    )


def delimiter_of(args: argparse.Namespace) -> str | None:
    """Return the delimiter that an option names; a tab is hard to type."""
    found = {"\\t": "\t", "tab": "\t"}.get(args.delimiter or "", args.delimiter)
    if found is not None and len(found) != 1:
        raise RequestError(f"--delimiter is one character; got {args.delimiter!r}")
    return found


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add a source, the columns of one that is a table, and the cache that it goes into."""
    parser.add_argument(
        "source",
        type=source_argument,
        metavar="SOURCE",
        help="folder of images, table, tar or Parquet files, zip, HDF5 file, or URL of a folder",
    )
    add_table_options(parser)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of the cache (default: SOURCE.cache)")


def add_max_bad_option(parser: Any) -> None:
    """Add how many inputs may be bad."""
    parser.add_argument(
        "--max-bad", type=float, default=0.05, metavar="SHARE", help="exit with status 1 above this share of bad inputs"
    )


def named_source(args: argparse.Namespace, source: Any) -> Any:
    """Return a source with what the options say of a table; others are opened as they are named.

    Parameters
    ----------
    args
        Of a parser with `add_table_options`.
    source
        What it calls a source.
    """
    if source is None or not (Path(source).is_file() or str(source).lower().endswith(".parquet")):
        return source
    from featurecache.sources.opening import source_spec

    # As they are named wherever that says all: a table of texts has no paths in it.
    has_form = args.delimiter is not None or args.no_header
    is_text = args.text_column is not None
    if not has_form and (is_text or not (args.path_column is not None or args.allow_local_urls)):
        return source
    path_column, delimiter = None if is_text else args.path_column, delimiter_of(args)
    form = {"path_column": path_column, "delimiter": delimiter, "has_header": not args.no_header}
    return called(args, source_spec, path=source, **form)


def add_extraction_options(parser: argparse.ArgumentParser) -> None:
    """Add how extraction runs."""
    default = ExtractionSettings()
    parser.add_argument(
        "--tap",
        action="append",
        metavar="T",
        help="layer to keep as node:pooling, e.g. layer4:avg, or all of: stages, blocks, default; repeat for several "
        "(default: the classifier's input)",
    )
    group = parser.add_argument_group("extraction")
    group.add_argument(
        "--views", type=int, metavar="K", help="keep K augmented views of each image too, to train heads on"
    )
    group.add_argument("--view-seed", type=int, metavar="S", help="of the views (default 0)")
    group.add_argument(
        "--dtype",
        choices=get_args(DtypeChoice),
        default=default.dtype,
        help="stored numbers (default auto: as the features that are there; of new ones float16, or float32 where "
        "float16 would take more than 1 %% of their spread)",
    )
    group.add_argument(
        "--shard-rows", type=int, metavar="N", help="rows in a shard (default: 256 to 16,384, by their number)"
    )
    add_engine_options(group, default="local", help="local (default: this process), processes, rank or ray")
    add_max_bad_option(group)
    add_runtime_options(parser)


def add_engine_options(group: Any, *, default: str | None, help: str) -> None:
    """Add where workers run, and how many."""
    # No choices: engines come from installed packages, which are asked when one is named.
    group.add_argument("--engine", default=default, help=help)
    group.add_argument("--processes", type=int, metavar="N", help="workers that an engine of several starts")


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add what executes the backbone."""
    default = ExtractionSettings()
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--runtime",
        choices=get_args(RuntimeName),
        default=default.runtime,
        help="what executes the network; auto (default): the quickest that gives the same features",
    )
    add_device_option(group)
    group.add_argument("--batch-size", type=int, metavar="N", help="inputs in a pass (default: chosen for the device)")
    add_jobs_option(group)


def add_input_options(parser: argparse.ArgumentParser, *, purpose: str) -> None:
    """Add where the inputs of a cache lie, and what its backbones need besides their names."""
    group = parser.add_argument_group("inputs", purpose)
    group.add_argument(
        "--source", type=source_argument, metavar="SOURCE", help="folder or table that the cache was made from"
    )
    add_table_options(group)
    add_weights_file_options(group)
    group.add_argument(
        "--backbone", metavar="B", help="only this backbone's features; agrees to run the code of a python: backbone"
    )
    add_device_option(group)
    add_jobs_option(group)


def add_metric_option(parser: Any) -> None:
    """Add by which metric is chosen."""
    parser.add_argument(
        "--metric",
        metavar="M",
        help="choose settings and heads by accuracy (default), balanced_accuracy, f1_macro, roc_auc, average_precision "
        "(default of multilabel tasks), log_loss, or r2 (numbers)",
    )


def add_threshold_options(parser: Any) -> None:
    """Add from which probability on a class or a label is predicted."""
    parser.add_argument(
        "--threshold",
        metavar="RULE",
        help="of two classes, or of each of several labels, predict from the probability on that has the best f1, or "
        "reaches recall=R or precision=P, or has the least cost=FN:FP (of a missed positive, of a false alarm); "
        "default: from one half on",
    )
    parser.add_argument(
        "--positive", metavar="CLASS", help="which of two classes is the positive one (default: the second)"
    )


def add_memory_option(parser: Any) -> None:
    """Add how much of the features may be in memory."""
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="hold at most so many gigabytes of features in memory, and read more from disk block by block (default: "
        "half of what is free)",
    )


def called(args: argparse.Namespace, function: Callable[..., Made], **others: Any) -> Made:
    """Call a function, or make a record, with what options have the names of its parameters, and others."""
    given = {name: vars(args)[name] for name in inspect.signature(function).parameters if name in vars(args)}
    return function(**(given | others))


class ExtractionChoice(TypedDict):
    """What the options say of an extraction, by the parameters of `featurecache.extract`."""

    taps: list[str]
    views: ViewSpec | None
    text_column: str | None
    id_column: str | None
    settings: ExtractionSettings
    engine: str


def extraction_of(args: argparse.Namespace) -> ExtractionChoice:
    """Return how the options want features to be extracted.

    Parameters
    ----------
    args
        Of a parser with `add_extraction_options` and `add_table_options`.
    """
    # A seed alone would be ignored in silence.
    if args.views is None and args.view_seed is not None:
        raise RequestError(f"view seed {args.view_seed} is for views only; add --views K")
    return {
        "taps": args.tap or ["default"],
        "views": None if args.views is None else ViewSpec(count=args.views, seed=args.view_seed or 0),
        "text_column": args.text_column,
        "id_column": args.id_column,
        "settings": settings_of(args),
        "engine": args.engine,
    }


def inputs_of(args: argparse.Namespace) -> Inputs:
    """Return the inputs that the options name."""
    from featurecache.extraction.recomputation import Inputs

    # Only what says where and how fast: rows must come out as they were stored.
    settings = ExtractionSettings(device=args.device, num_workers=args.jobs)
    return called(args, Inputs, source=named_source(args, args.source), settings=settings)


def features_of(args: argparse.Namespace) -> FeatureChoice:
    """Return which cached features the options name."""
    return {"backbone": args.backbone, "fingerprint": args.fingerprint, "dtype": args.dtype, "views": args.views}


def memory_of(args: argparse.Namespace) -> int | None:
    """Return how many bytes of features may be in memory, where --memory says it."""
    # Written so that NaN is refused too.
    if args.memory is not None and not args.memory > 0:
        raise RequestError(f"--memory must be above 0, got {args.memory:g}")
    # Decimal gigabytes, as `wording.human_bytes` writes them.
    return None if args.memory is None else int(args.memory * 1e9)


def settings_of(args: argparse.Namespace) -> ExtractionSettings:
    """Return the settings that the options name."""
    # Verbs that store nothing have no options of stored types and shards.
    return called(args, ExtractionSettings, num_workers=args.jobs, num_processes=getattr(args, "processes", None))


def _num_jobs(text: str) -> int | None:
    """Return a number of jobs; None, which is one per core, for -1 as joblib counts."""
    if not re.fullmatch(r"-1|0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"needs a number from 1, or -1 for one per core, got {text!r}")
    return None if text == "-1" else int(text)
