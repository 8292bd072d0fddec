"""Names of classes that may be one class written twice, or several written as one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from featurecache.errors import ReportWarning
from featurecache.specs import TaskKind
from featurecache.store.labels import Label
from featurecache.wording import counted

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


def merged_spellings(
    labels: Sequence[Label], kind: TaskKind, *, merge: bool
) -> tuple[list[Label], list[ReportWarning]]:
    """Return labels with one spelling for each name, and a warning where names differ only in case or spaces.

    Parameters
    ----------
    labels : sequence of Label
        Of kind ``classification``, or lists of labels of kind ``multilabel``.
    kind : str
    merge : bool
        Take the spelling that is used most, of equals the first in order; else names stay as they are.
    """
    counts = Counter(name for label in labels for name in label.label.split("\n") if name)
    by_letters = defaultdict(list)
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        by_letters[_letters(name)].append(name)
    several = [names for names in by_letters.values() if len(names) > 1]
    if not several:
        return list(labels), []
    first = " and ".join(f"{name!r} ({counts[name]})" for name in several[0][:3])
    # As the first ones do, which are shown.
    is_number = _NUMBER.fullmatch(several[0][0].strip()) is not None
    difference = "that are one number" if is_number else "that differ only in case or spaces"
    what = f"{counted(len(several), 'name', verb='is')} spelled in several ways {difference}, first {first}"
    text = f"{what}: taken for one" if merge else f"{what}: taken for different ones; --merge-spellings makes them one"
    warning = ReportWarning(
        kind="spellings", count=len(several), text=text, examples=tuple(", ".join(names) for names in several)
    )
    if not merge:
        return list(labels), [warning]
    chosen = {name: names[0] for names in several for name in names}
    respelled = []
    for label in labels:
        names = [chosen.get(name, name) for name in label.label.split("\n")]
        # Two spellings of one label that both hold of a sample are one.
        text = "\n".join(sorted(set(names)) if kind == "multilabel" else names)
        respelled.append(replace(label, label=text))
    return respelled, [warning]


def _letters(name: str) -> str:
    plain = unicodedata.normalize("NFC", name).strip()
    if _NUMBER.fullmatch(plain):  # 1 and 1.0 are one number, and 1 2 is not 12
        return repr(float(plain))
    return "".join(plain.split()).casefold() if not plain.replace(" ", "").isdigit() else plain


def joined_labels(column: str, kind: TaskKind, labels: Sequence[Label]) -> Iterator[ReportWarning]:
    """Yield a warning where entries seem to name several labels that were taken for one.

    That is where entries split at a separator give fewer names than there are entries: names come again, combined with
    others, or are entries of their own. Of a column of lists it is enough that most names between commas come again.

    Parameters
    ----------
    column : str
        That the labels stand in.
    kind : str
    labels : sequence of Label
    """
    multilabel = kind == "multilabel"
    entries = {name for label in labels for name in (label.label.split("\n") if multilabel else [label.label]) if name}
    # Names of classes hold spaces and strokes; commas, and other separators of labels, are seldom inside one.
    for separator in (",", "/", "+", "&", " ") if multilabel else ",;|":
        several = sorted(name for name in entries if separator in name.strip(separator))
        names = {piece.strip() for name in entries for piece in name.split(separator)} - {""}
        pieces = {piece.strip() for name in several for piece in name.split(separator)} - {""}
        often = len(several) >= 3 and 2 * len(several) >= len(entries)
        # Words of names come again, too: between spaces, far fewer have to be left.
        fewer = len(names) < len(entries) * (0.75 if separator == " " else 1)
        counts = Counter(piece.strip() for name in several for piece in name.split(separator))
        again = sum(count for piece, count in counts.items() if count > 1 or piece in entries)
        is_list = multilabel and separator == "," and len(several) >= 3 and 2 * again >= counts.total()
        # Pieces that are names by themselves elsewhere leave no doubt.
        if ((often or (several and pieces <= entries)) and fewer) or is_list:
            yield ReportWarning(
                kind="joined_labels",
                count=len(several),
                text=f"{len(entries)} different entries of {column!r} are made of {len(names)} names joined by "
                f"{separator!r}, and each entry is taken for one name; divide them with "
                f"{'' if multilabel else '--kind multilabel '}--separator {separator!r}",
                examples=tuple(several),
            )
            return
