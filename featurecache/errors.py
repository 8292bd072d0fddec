"""Every error a user can meet, and every warning. A message says what is wrong, where, and what to do, in one line."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypeVar

Written = TypeVar("Written")
_PACKAGE = Path(__file__).parent


def _rebuilt(kind: type[FeatureCacheError], args: tuple[object, ...], state: dict[str, object]) -> FeatureCacheError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class FeatureCacheError(Exception):
    """Base of all errors raised on purpose by featurecache."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are rebuilt from their message alone, which the constructors of ours do not take: a worker's error
        # would arrive as a TypeError about that.
        return _rebuilt, (type(self), self.args, vars(self))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the caller's lines and the message; all frames after ``%xmode Verbose``."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if getattr(getattr(shell, "InteractiveTB", None), "mode", None) == "Verbose":
            return "".join(traceback.format_exception(self)).splitlines()
        lines = []
        for frame in traceback.extract_tb(self.__traceback__):
            file = Path(frame.filename)
            # What follows is ours, up to the error.
            if file.is_relative_to(_PACKAGE):
                break
            # Frames of the shell, which runs the cell.
            if "IPython" in file.parts:
                continue
            # A notebook gives the code of its cells files of their own, whose names nobody knows.
            is_notebook = file.parent.name.startswith("ipykernel_") or frame.filename.startswith("<")
            lines.append(f"line {frame.lineno} of {'this cell' if is_notebook else file.name}: {frame.line}")
        return [*lines, plain_text(f"{type(self).__name__}: {self}")]


class RequestError(FeatureCacheError, ValueError):
    """The request cannot be carried out as it was made."""


class UnknownNameError(FeatureCacheError, LookupError):
    """A name (backbone, tap, head, task, ...) that is not known here.

    Parameters
    ----------
    kind, name : str
        What was named, and how.
    known : iterable of str
        Names that there are.
    near : iterable of str, optional
        Those that may have been meant; those spelt alike when left out.
    advice : str
        What else to say.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, near: Iterable[str] | None = None, advice: str = ""
    ) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        sentences = [f"unknown {kind} {name!r}"]
        if near := difflib.get_close_matches(name, self.known) if near is None else list(near):
            sentences.append(f"did you mean {' or '.join(repr(n) for n in near)}?")
        elif self.known:
            shown = ", ".join(self.known[:12]) + (", ..." if len(self.known) > 12 else "")
            sentences.append(f"known: {shown}")
        if advice:
            sentences.append(advice)
        super().__init__("; ".join(sentences))


class MissingExtraError(FeatureCacheError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; install it with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs what an extra needs.

    It names the packages themselves, which works however this one was installed (from a checkout, a wheel, or not at
    all); only where the installed edition knows no such extra, the extra is named.
    """
    try:
        # Only an installed edition knows its extras; a checkout on the path has none.
        needed = metadata.requires("featurecache") or []
    except metadata.PackageNotFoundError:
        needed = []
    # Packaging tools write the extra with either kind of quotes.
    mark = re.compile(rf"""\bextra\s*==\s*["']{re.escape(extra)}["']""")
    packages = [
        name.strip() for name, _, rule in (requirement.partition(";") for requirement in needed) if mark.search(rule)
    ]
    return f"pip install {shlex.join(packages or [f'featurecache[{extra}]'])}"


def command_line(*words: object) -> str:
    """Return a command of featurecache as it can be typed, words with spaces quoted."""
    return shlex.join(["featurecache", *map(str, words)])


class SourceError(FeatureCacheError, ValueError):
    """A source of samples is missing, empty or unreadable."""


class InputError(FeatureCacheError, ValueError):
    """One input cannot be turned into an array. ``status`` is the short word kept with its row."""

    def __init__(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"{status}: {reason}")


class WeightsError(FeatureCacheError, ValueError):
    """Weights that cannot be read, or that do not fit the backbone."""


class BackboneError(FeatureCacheError, ValueError):
    """A network that cannot serve as a backbone in the way it was asked to."""


class RuntimeMismatchError(FeatureCacheError, ValueError):
    """A faster runtime does not agree with the reference."""


class DriftError(FeatureCacheError, ValueError):
    """This machine makes other features than those that are stored."""


class WorkerDiedError(FeatureCacheError, RuntimeError):
    """Processes that worked on a job were ended again and again.

    Parameters
    ----------
    exit_code : int
        Of the last one: negative, the signal that ended it.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        # Of what the system kills, nearly all took too much memory.
        why = "the system ended it, perhaps for its memory" if exit_code == -9 else f"it ended with {exit_code}"
        super().__init__(
            f"several workers were lost, the last because {why}; what is committed stays: run the command again, with "
            "fewer --processes or a smaller --batch-size"
        )


class LoadingDiedError(FeatureCacheError, RuntimeError):
    """A process that decodes was ended from outside."""

    def __init__(self) -> None:
        super().__init__(
            "a process that decodes was ended, perhaps by the system for its memory; what is committed stays: run the "
            "command again, with fewer --jobs or with FEATURECACHE_LOADING=threads"
        )


class StoreError(FeatureCacheError, ValueError):
    """A cache folder that cannot be used as it stands."""


class FormatVersionError(StoreError):
    """A cache written in a format that this release does not read."""


class CorruptError(StoreError):
    """Stored bytes are not what their commit record says."""


class TaskError(FeatureCacheError, ValueError):
    """Labels or splits that cannot make a task."""


class HeadError(FeatureCacheError, ValueError):
    """A head that cannot be fitted, saved or loaded."""


class BackboneMismatchError(FeatureCacheError, ValueError):
    """A backbone that cannot be reproduced exactly as it was when features were made with it."""


class NotAgreedError(BackboneMismatchError, RequestError):
    """A record names what only the caller may decide to open: code, a file, a folder, or a download.

    Attributes
    ----------
    options : tuple of str
        What agrees to it, as words of a command line.
    """

    def __init__(self, message: str, options: Iterable[str]) -> None:
        self.options = tuple(options)
        super().__init__(message)


class DownloadNeededError(WeightsError):
    """Weights are not on this machine, and nobody has agreed to ask a network for them."""


MAX_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportWarning:
    """Something doubtful that a report says where people look: after the summary, in the HTML report and in JSON.

    Parameters
    ----------
    kind : str
        A fixed word for programs, such as ``default_tap`` or ``flat_images``.
    count : int
        Number of samples, files or tensors that it is about.
    text : str
        One sentence that says what, how many and what to do.
    examples : tuple of str
        Names of the first of them, at most `MAX_EXAMPLES`; more are dropped.
    """

    kind: str
    count: int
    text: str
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(shortened(name) for name in self.examples[:MAX_EXAMPLES]))

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {**asdict(self), "examples": list(self.examples)}

    def about(self, subject: str) -> ReportWarning:
        """Return the warning with the name of what it is about in front of its text."""
        return replace(self, text=f"{subject}: {self.text}")


@dataclass(frozen=True, slots=True)
class OutputFailure:
    """An output that could not be written, of a command whose results are there."""

    text: str
    """One line that names the output and the reason."""
    error: Exception


def try_output(what: str, write: Callable[[], Written], failures: list[OutputFailure]) -> Written | None:
    """Return what ``write`` returns; where it raises, None, and a failure by the name ``what`` more.

    Drawing and formatting run other people's code, and hours of fits stand behind it: whatever it raises, the results
    must not be lost with it.

    Parameters
    ----------
    what : str
        Name of the output, for people.
    write : callable
        Writes it.
    failures : list of OutputFailure
        Takes what failed.
    """
    try:
        return write()
    except Exception as error:
        reason = shortened(error, 1000) or type(error).__name__
        failures.append(OutputFailure(plain_text(reason if reason.startswith(what) else f"{what}: {reason}"), error))
        return None


def unique_warnings(warnings: Iterable[ReportWarning]) -> list[ReportWarning]:
    """Drop repetitions, keeping the order."""
    return list(dict.fromkeys(warnings))


def shortened(value: object, limit: int = 200) -> str:
    """Write a value that came from elsewhere for a message: on one line, and no longer than a line should be."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def plain_text(text: str) -> str:
    """Write out control characters, marks that turn or hide text, and the like: a name must not steer who shows it."""
    return "".join(char if char.isprintable() or char == " " else repr(char)[1:-1] for char in text)


def first_line(error: BaseException) -> str:
    """Return the first line of somebody else's error: networks, hubs and converters tell stories."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def nearest_layers(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Return the layers or taps most like a name, best first: same end of the path, then like spelling.

    Parameters
    ----------
    name : str
    known : iterable of str
    count : int
        At most so many.
    """
    node = name.partition(":")[0].lower()
    nodes = {known_name: known_name.partition(":")[0].lower() for known_name in known}
    ends = [
        known_name
        for known_name, other in nodes.items()
        if f".{other}".endswith(f".{node}") or f".{node}".endswith(f".{other}")
    ]
    # Each spelling once, or taps of one node would take all places among the closest.
    close = difflib.get_close_matches(node, list(dict.fromkeys(nodes.values())), n=count, cutoff=0.6)
    like = [known_name for other in close for known_name in nodes if nodes[known_name] == other]
    # Of a long path, people often mistype the last name only.
    if not ends and not like:
        last = {known_name: other.rpartition(".")[2] for known_name, other in nodes.items()}
        spelt = difflib.get_close_matches(
            node.rpartition(".")[2], list(dict.fromkeys(last.values())), n=count, cutoff=0.6
        )
        like = [
            known_name for other in spelt for known_name in last if last[known_name] == other and not other.isdigit()
        ]
    return list(dict.fromkeys([*sorted(ends, key=len), *like]))[:count]
