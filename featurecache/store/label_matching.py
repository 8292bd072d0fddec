"""Names of samples in a table of labels, matched to the names in a source.

A name is matched exactly; else by its end, as paths of another root are; else in another case, without suffix or with
another one; else, if that matches all that are left, by the file's name without folders and suffix. What is matched
otherwise than exactly is told, and a name that fits two samples is an error.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from featurecache.errors import ReportWarning, TaskError, shortened

_MOST_SUFFIX = 5
_Form = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class NameMatches:
    """Where names were found.

    Attributes
    ----------
    paths : dict of str to str
        Name in the source by name in the table; names that are not found are left out.
    warnings : tuple of ReportWarning
        How names were matched, where not exactly.
    """

    paths: dict[str, str]
    warnings: tuple[ReportWarning, ...] = ()


def match_names(names: Iterable[str], paths: Sequence[str]) -> NameMatches:
    """Find the names of a table among the names of a source.

    Parameters
    ----------
    names : iterable of str
        With forward slashes.
    paths : sequence of str
        Of a source, or of several.

    Raises
    ------
    TaskError
        A name fits two samples, or two names fit one.
    """
    wanted, able = dict.fromkeys(names), dict.fromkeys(paths)
    found = {name: name for name in wanted if name in able}
    left = [name for name in wanted if name not in able]
    how: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for rule, form, of_name in _RULES if left else ():
        matches = _by_end(left, able, form, of_name)
        if rule == _LAST and len(matches) < len(left):
            break  # it forgives too much to be right for some names only
        for name, path in matches.items():
            found[name] = path
            examples.setdefault(rule, f"{name!r} is {path!r}")
        how[rule] += len(matches)
        left = [name for name in left if name not in matches]
    _check_apart(found)
    return NameMatches(found, tuple(_warnings(how, examples, len(wanted))))


def suggested_path(paths: Iterable[str]) -> str:
    """Return words that show how names of a source look.

    Parameters
    ----------
    paths : iterable of str
    """
    first = next(iter(paths), None)
    return "" if first is None else f" (the source has names such as {shortened(repr(first))})"


def _by_end(left: Sequence[str], paths: Iterable[str], form: _Form, of_name: _Form) -> dict[str, str]:
    """Return the one path for each name of which one is the end of the other, in whole folders."""
    by_file = defaultdict(list)
    for path in paths:
        parts = tuple(form(path).split("/"))
        by_file[parts[-1]].append((parts, path))
    matches = {}
    for name in left:
        mine = tuple(of_name(name).strip("/").split("/"))
        fits = [(min(len(parts), len(mine)), path) for parts, path in by_file[mine[-1]] if _is_end(parts, mine)]
        # Of a path and a longer one that both are the end of a name, the longer one says more.
        longest = max((length for length, _ in fits), default=0)
        best = [path for length, path in fits if length == longest]
        if len(best) > 1:
            raise TaskError(
                f"{shortened(repr(name))} fits {len(best)} samples of the source, {best[0]!r} and {best[1]!r} among "
                "them; write the path in the source, or name that source with --source"
            )
        if best:
            matches[name] = best[0]
    return matches


def _is_end(first: Sequence[str], second: Sequence[str]) -> bool:
    count = min(len(first), len(second))
    return first[-count:] == second[-count:]


def _same(text: str) -> str:
    return text


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _without_suffix(text: str) -> str:
    """Return a path without its suffix, if it has one of letters and digits."""
    stem, dot, suffix = text.rpartition(".")
    is_suffix = dot and stem and not stem.endswith("/") and len(suffix) <= _MOST_SUFFIX and suffix.isalnum()
    return stem if is_suffix and not suffix.isdigit() else text


def _stem(text: str) -> str:
    return _without_suffix(_folded(PurePosixPath(text).name))


_LAST = "by the name of the file without its folder and suffix"
_RULES: tuple[tuple[str, _Form, _Form], ...] = (
    ("by the end of the path", _same, _same),
    ("by name in another case", _folded, _folded),
    ("by name without suffix", lambda path: _without_suffix(_folded(path)), _folded),
    (
        "by name with another suffix",
        lambda path: _without_suffix(_folded(path)),
        lambda name: _without_suffix(_folded(name)),
    ),
    (_LAST, _stem, _stem),
)
"""What is said of a rule, and the forms in which paths and names are compared."""


def _check_apart(found: dict[str, str]) -> None:
    """Refuse two names of one sample: one of them means another."""
    first: dict[str, str] = {}
    for name, path in found.items():
        if (other := first.setdefault(path, name)) != name:
            raise TaskError(
                f"{shortened(repr(other))} and {shortened(repr(name))} of the labels both fit {path!r} of the source; "
                "write the path in the source"
            )


def _warnings(how: Counter[str], examples: dict[str, str], num_names: int) -> Iterable[ReportWarning]:
    for rule, count in how.items():
        if count:
            text = f"{count} of {num_names} names matched {rule}: {shortened(examples[rule])}"
            yield ReportWarning(kind="matched_names", count=count, text=text)
