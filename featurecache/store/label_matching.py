"""Names of samples in a table of labels, matched to the names in a source.

A name is matched exactly. Where none is, names are matched by their ends, as paths of another root are; then those that
are left in another case, without suffix or with another one; and where nothing was matched so far, all of them by the
file's name without folders and suffix. What is matched otherwise than exactly is told, and a name that fits two samples
is an error.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from featurecache.errors import ReportWarning, TaskError, shortened
from featurecache.wording import counted

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


def match_names(names: Iterable[str], paths: Sequence[str], *, by_file: bool = True) -> NameMatches:
    """Find the names of a table among the names of a source.

    Parameters
    ----------
    names : iterable of str
        With forward slashes.
    paths : sequence of str
        Of a source, or of several.
    by_file : bool
        Match by the names of files alone where nothing else fits.

    Raises
    ------
    TaskError
        A name fits two samples, or two names fit one.
    """
    requested, able = dict.fromkeys(names), dict.fromkeys(paths)
    found = {name: name for name in requested if name in able}
    how: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for rule, form, of_name in _RULES:
        left = [name for name in requested if name not in found]
        # A table is written in one way: a name without folders beside names with them is another sample.
        if (
            not left
            or (found and rule in (_BY_END, _BY_FILE) and not how)
            or (rule == _BY_FILE and (found or not by_file))
        ):
            continue
        # A sample that a stricter rule gave a name has it.
        free = able.keys() - found.values() if found else able.keys()
        matches = _by_end(left, [path for path in able if path in free], form, of_name, strict=rule != _BY_FILE)
        if rule == _BY_FILE and len(matches) < len(left):
            break  # it forgives too much to be right for some names only
        _check_apart(matches)
        for name, path in matches.items():
            found[name] = path
            examples.setdefault(rule, f"{name!r} is {path!r}")
        how[rule] += len(matches)
    return NameMatches(found, tuple(_warnings(how, examples, len(requested))))


def _by_end(left: Sequence[str], paths: Sequence[str], form: _Form, of_name: _Form, *, strict: bool) -> dict[str, str]:
    """Return the one path for each name of which one is the end of the other, in whole folders.

    A name that fits several is an error where ``strict``, and else fits none.
    """
    # All ends of paths, so that a name is looked up and not compared with each path.
    whole, ending = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path in paths:
        text = form(path)
        whole[text].append(path)
        for end in _ends(text):
            if len(several := ending[end]) < 2:
                several.append(path)
    matches = {}
    for name in left:
        text = of_name(name).strip("/")
        fits = whole.get(text) or ending.get(text) or []
        # Of a path and a longer one that both are the end of a name, the longer one says more.
        fits = fits or next((whole[end] for end in _ends(text) if end in whole), [])
        if len(fits) == 1:
            matches[name] = fits[0]
        elif fits and strict:
            raise TaskError(
                f"{shortened(repr(name))} fits several samples of the source, {fits[0]!r} and {fits[1]!r} among them; "
                "write the path in the source, or name that source with --source"
            )
    return matches


def _ends(path: str) -> Iterator[str]:
    """Yield the ends of a path in whole folders, the longest first."""
    yield path
    start = path.find("/")
    while start >= 0:
        yield path[start + 1 :]
        start = path.find("/", start + 1)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _without_suffix(path: str) -> str:
    """Return a path in one case and composition and without its suffix, if it has one of letters and digits."""
    text = _folded(path)
    stem, dot, suffix = text.rpartition(".")
    is_suffix = dot and stem and not stem.endswith("/") and len(suffix) <= _MOST_SUFFIX and suffix.isalnum()
    # A number behind a point belongs to the name, as in scan.001 and scan.002.
    return stem if is_suffix and not suffix.isdigit() else text


def _stem(path: str) -> str:
    return _without_suffix(PurePosixPath(path).name)


def name_of(entry: str) -> str:
    """Return the entry of a table as a name of a sample, with forward slashes."""
    return str(PurePosixPath(entry.strip().replace("\\", "/")))


def is_sample_id(name: str) -> bool:
    """Tell whether a name is a sample id, which no source need know."""
    return len(name) == 64 and not set(name.lower()) - set("0123456789abcdef")


def loose_forms(name: str) -> tuple[str, str]:
    """Return two forms of a name: whatever rule matches two names, one has a form of the other."""
    base = _folded(name.rstrip("/").rpartition("/")[2])
    return base, _without_suffix(base)


_BY_END = "by the end of the path"
_BY_FILE = "by the name of the file without its folder and suffix"
_RULES: tuple[tuple[str, _Form, _Form], ...] = (
    (_BY_END, str, str),
    ("by name in another case or composition", _folded, _folded),
    ("by name without suffix", _without_suffix, _folded),
    ("by name with another suffix", _without_suffix, _without_suffix),
    (_BY_FILE, _stem, _stem),
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
            text = f"{counted(count, 'name', of=num_names)} matched {rule}: {shortened(examples[rule])}"
            yield ReportWarning(kind="matched_names", count=count, text=text)
