"""Soundness first: copies on both sides of a split, classes that nothing is judged by, labels that look wrong.

Facts about files that are not the picture: what a head could go by without looking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.finding import Finding
from featurecache.advice.paired import mean_difference
from featurecache.advice.probe import Floats, linear_probe
from featurecache.evaluation.near_copies import NearCopies
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.wording import counted, some_of

LEAST_ROWS = 5
"""Of a class in a split for evaluation; with fewer, its recall is anything."""
LEAST_GROUPS = 20
_LEAST_SHARE = 0.25
"""Of what features gain over the largest class: facts that explain less explain little."""
# Each of many copies of one image is a pair with each other: there may be millions.
_MOST_PAIRS = 50


def count_findings(
    counts: Mapping[str, Mapping[str, int]], num_groups: int | None, *, commands: Mapping[str, str] | None = None
) -> list[Finding]:
    """Say which classes nothing is judged by, and where groups are too few.

    Parameters
    ----------
    counts : mapping
        Of each split, the samples of each class, or with each label.
    num_groups : int or None
        None: rows are not grouped.
    commands : mapping, optional
        ``label`` and ``split``: what to run next.
    """
    commands, findings = commands or {}, []
    names = list(next(iter(counts.values()), {}))
    total = sum(sum(of_split.values()) for of_split in counts.values())
    # Nothing is evaluated on the train split.
    for split in (split for split in ("validation", "test") if split in counts):
        missing = [name for name in names if counts[split].get(name, 0) == 0]
        few = [name for name in names if 0 < counts[split].get(name, 0) < LEAST_ROWS]
        if missing or few:
            # Of a thousand classes a sentence names five; all of them are in the details.
            lacks = [
                f"{what} of {some_of(of, 5)}"
                for what, of in (("no sample", missing), (f"fewer than {LEAST_ROWS}", few))
                if of
            ]
            findings.append(
                Finding(
                    question="soundness",
                    verdict="classes missing" if missing else "few samples",
                    text=f"the {split} split has {' and '.join(lacks)}: figures say nothing of these classes",
                    n=sum(counts[split].values()),
                    basis=f"counts of the {split} split",
                    next_command=commands.get("label"),
                    # Where a single class is left, any constant prediction is right.
                    is_fatal=bool(missing) and len(missing) == len(names) - 1,
                    details={"missing": missing, "few": few, "split": split},
                )
            )
    if num_groups is not None and num_groups < LEAST_GROUPS:
        findings.append(
            Finding(
                question="soundness",
                verdict="few groups",
                text=f"there {'is' if num_groups == 1 else 'are'} {counted(num_groups, 'group')}, and samples of "
                "one group are alike: with fewer than "
                f"{LEAST_GROUPS} intervals are wide, and may be wrong",
                figure=float(num_groups),
                n=total,
                basis="groups of the task",
                next_command=commands.get("label"),
            )
        )
    return findings


def pairs_of(copies: NearCopies, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs that are most alike, as plain values.

    Parameters
    ----------
    copies : NearCopies
    names : sequence of str
        Of the samples.
    """
    pairs = zip(copies.pairs[:_MOST_PAIRS].tolist(), copies.similarity[:_MOST_PAIRS].tolist(), strict=True)
    return [{"first": names[i], "second": names[j], "similarity": round(found, 4)} for (i, j), found in pairs]


def copies_finding(
    copies: NearCopies,
    splits: Sequence[str],
    gains_as_they_are: Floats,
    gains_kept_together: Floats,
    names: Sequence[str],
    *,
    score: str = "accuracy",
    next_command: str | None = None,
) -> Finding:
    """Say how many samples are near-copies, how many pairs a split divides, and what that does to the score.

    Parameters
    ----------
    copies : NearCopies
    splits : sequence of str
        Of each sample.
    gains_as_they_are, gains_kept_together : ndarray (m,)
        What each of the first samples adds to the score out of fold, with copies in any fold and with copies in one
        fold; the others are for testing.
    names : sequence of str
        Of the samples.
    score : str
    next_command : str, optional
    """
    n, of_split = len(splits), np.asarray(splits)
    across = of_split[copies.pairs[:, 0]] != of_split[copies.pairs[:, 1]]
    basis = f"cosine of standardised features above {copies.threshold:.2f}, as this set's own neighbours are less alike"
    details = {"num_pairs": len(copies.pairs), "num_across": int(across.sum()), "pairs": pairs_of(copies, names)}
    if not len(copies.pairs):
        text = f"no near-copies found by features (pairs above {copies.threshold:.2f})"
        return Finding(question="soundness", verdict="none found", text=text, n=n, basis=basis, details=details)
    # By groups of copies, which are right or wrong together.
    found = mean_difference(gains_as_they_are - gains_kept_together, copies.group[: len(gains_as_they_are)])
    text = (
        f"{counted(copies.num_alike, 'sample', of=n, verb='is')} near-copies of others, and "
        f"{counted(across.sum(), 'pair', verb='lies')} on both sides of a split: {score} out of fold is "
        f"{gains_as_they_are.mean():.3f} with them apart and "
        f"{gains_kept_together.mean():.3f} with copies kept together"
    )
    return Finding(
        question="soundness",
        verdict="near-copies",
        text=text,
        **found.figures,
        n=n,
        basis=basis,
        next_command=next_command,
        # Then the figures are of memory, and every other answer rests on them.
        is_fatal=found.low > 0.02,
        details=details,
    )


def shortcut_finding(
    facts: Mapping[str, Floats],
    y: NDArray[np.int64],
    gains_of_features: Floats,
    folds: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
) -> Finding:
    """Say whether facts that are not the picture tell the classes apart: file size, shape, camera, mean colour.

    Parameters
    ----------
    facts : mapping of str to ndarray (n,)
        Numbers, or codes of names.
    y : ndarray of int64 (n,)
        Class indices.
    gains_of_features : ndarray (n,)
        Whether the probe on features is right, out of fold.
    folds : ndarray of int (n,)
    groups : ndarray of int (n,), optional
    """
    floor = (y == np.bincount(y).argmax()).astype(np.float64)
    right = {"all of them": _right_by_facts(np.stack(list(facts.values()), axis=1), y, folds)}
    right |= {
        name: _right_by_facts(values[:, None], y, folds) for name, values in facts.items() if len(np.unique(values)) > 1
    }
    found = {name: mean_difference(gain - floor, groups) for name, gain in right.items()}
    alone = {name: difference for name, difference in found.items() if name != "all of them" or len(found) == 1}
    worst = max(alone, key=lambda name: alone[name].mean)
    every, gained = found["all of them"], max(float(gains_of_features.mean() - floor.mean()), 1e-9)
    share = every.mean / gained
    details = {
        "by_fact": {name: float(gain.mean()) for name, gain in right.items()},
        "largest_class": float(floor.mean()),
        "share_explained": float(share),
    }
    answer = partial(
        Finding,
        question="soundness",
        **every.figures,
        n=len(y),
        basis=f"decision tree on {', '.join(facts)}, out of fold, less the largest class",
        details=details,
    )
    if every.low <= 0:
        return answer(verdict="none found", text=f"no shortcut found in {', '.join(facts)}")
    text = (
        f"facts that are not the picture are right in {right['all of them'].mean():.3f} (largest class "
        f"{floor.mean():.3f}), {min(share, 1):.0%} of what the features gain over it"
    )
    if share < _LEAST_SHARE:
        return answer(verdict="none found", text=f"no shortcut found: {text}")
    text = f"{worst} alone tells the classes: {text}"
    # Not fatal: a file may be larger because there is more to see in it.
    return answer(verdict="shortcut", text=text)


def _right_by_facts(facts: Floats, y: NDArray[np.int64], folds: NDArray[np.int64]) -> Floats:
    from sklearn.tree import DecisionTreeClassifier

    # A small tree instead of a forest: a shortcut is a simple rule.
    right, tree = np.zeros(len(y)), DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=5, random_state=0)
    for number in np.unique(folds):
        held_out = folds == number
        right[held_out] = tree.fit(facts[~held_out], y[~held_out]).predict(facts[held_out]) == y[held_out]
    return right


def label_finding(
    y: NDArray[np.int64],
    proba: Floats,
    names: Sequence[str],
    classes: Sequence[str],
    *,
    next_command: str | None = None,
) -> Finding:
    """List labels that are probably wrong, by confident learning (Northcutt et al., JAIR 70, 2021; cleanlab).

    Parameters
    ----------
    y : ndarray of int64 (n,)
        Class indices.
    proba : ndarray (n, n_classes)
        Out of fold.
    names : sequence of str
        Of the samples.
    classes : sequence of str
    next_command : str, optional
    """
    from cleanlab.filter import find_label_issues

    # The least probable first: people check some, not all.
    issues = find_label_issues(y, proba, return_indices_ranked_by="self_confidence", n_jobs=1)
    listed = [
        {
            "name": names[index],
            "label": classes[y[index]],
            "suggested": classes[int(proba[index].argmax())],
            "probability_of_label": round(float(proba[index, y[index]]), 4),
        }
        for index in issues.tolist()
    ]
    share = len(listed) / len(y)
    if not listed:
        text = "no label found that is worth checking"
    else:
        first = listed[0]
        text = (
            f"{counted(len(listed), 'label', of=len(y), verb='is')} worth checking, the first {first['name']} "
            f"(labelled {first['label']}, looks like {first['suggested']})"
        )
    return Finding(
        question="soundness",
        verdict="labels to check" if listed else "none found",
        text=text,
        figure=share,
        n=len(y),
        basis="confident learning on probabilities out of fold",
        next_command=next_command if listed else None,
        details={"labels": listed},
    )


def gains_with_copies_together(
    X: NDArray[np.floating],
    Y: Floats,
    group: NDArray[np.int64],
    gains_of: Callable[[Floats], Floats],
    random_state: int = 0,
) -> Floats:
    """Return what each sample adds to the score where copies are in one fold.

    Parameters
    ----------
    X : ndarray (n, d)
    Y : ndarray (n, n_outputs)
    group : ndarray of int (n,)
    gains_of : callable
        Takes predictions.
    random_state : int
    """
    from sklearn.model_selection import GroupKFold

    folds = np.empty(len(Y), np.int64)
    count = min(5, len(np.unique(group)))
    splitter = GroupKFold(count, shuffle=True, random_state=random_state)
    for number, (_, held_out) in enumerate(splitter.split(Y, None, group)):
        folds[held_out] = number
    return np.asarray(gains_of(linear_probe(X, Y, folds).out_of_fold))


def facts_of(store: FeatureStore, rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Return what a cache knows of the files of some rows: size in bytes, type, depth, and the number in the name.

    Parameters
    ----------
    store : FeatureStore
    rows : ndarray of int64 (n,)
    """
    names = [PurePosixPath(name) for name in store.samples.uris_of(rows)]
    suffixes = [name.suffix.lower() for name in names]
    codes = {suffix: float(code) for code, suffix in enumerate(sorted(set(suffixes)))}
    facts = {
        "size of the file": np.log(np.maximum(store.samples.take("size", rows).astype(np.float64), 1.0)),
        "type of the file": np.array([codes[suffix] for suffix in suffixes]),
        "depth of the folder": np.array([float(len(name.parts)) for name in names]),
    }
    # What is the same for all files tells nothing.
    return {name: values for name, values in facts.items() if len(np.unique(values)) > 1}
