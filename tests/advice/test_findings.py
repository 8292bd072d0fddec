"""Each answer on planted truths: how often it is found, and how often something is claimed where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.advice.diagnosis import diagnosis_finding
from featurecache.advice.evidence import gains
from featurecache.advice.how import depth_finding
from featurecache.advice.more_data import LearningCurve, learning_curve, more_data_finding
from featurecache.advice.probe import linear_probe, one_hot
from featurecache.advice.soundness import (
    copies_finding,
    count_findings,
    gains_with_copies_together,
    label_finding,
    shortcut_finding,
)
from featurecache.advice.what import Candidate, features_finding
from featurecache.advice.when import transfer_finding
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.near_copies import near_copies
from featurecache.heads.probability import calibrated, fit_temperature


def classes(generator: np.random.Generator, n: int, d: int, gap: float, num: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one centre for each class."""
    y = generator.integers(0, num, n)
    return generator.normal(size=(n, d)) + gap * np.eye(num, d)[y], y


def probe_gains(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    Y = one_hot(y, int(y.max()) + 1)
    return gains(y, linear_probe(X, Y, np.arange(len(y)) % 5).out_of_fold, "classification")


def test_planted_negative_transfer_is_found_in_20_of_20() -> None:
    generator, found = np.random.default_rng(0), 0
    for _ in range(20):
        hard = generator.random(400)
        transferred = (hard < 0.80).astype(np.float64)  # right in 0.80 of 400 rows, pixels in 0.88
        pixels = ((hard < 0.86) | (generator.random(400) < 0.14)).astype(np.float64)
        found += transfer_finding(transferred, {"pixels": pixels}).verdict == "hurts"
    assert found == 20


def test_identical_and_equally_good_arms_are_claimed_different_in_at_most_9_of_100() -> None:
    generator, claims, same = np.random.default_rng(1), 0, 0
    for _ in range(100):
        X, y = classes(generator, 150, 20, 1.5)
        first = probe_gains(X, y)
        second = probe_gains(X + generator.normal(0, 0.5, X.shape), y)
        third = probe_gains(X + generator.normal(0, 0.5, X.shape), y)
        claims += transfer_finding(second, {"pixels": third}).verdict != "cannot tell"
        same += transfer_finding(first, {"pixels": first}).verdict != "cannot tell"
    assert claims <= 9
    assert same == 0


def test_permuted_labels_are_claimed_helpful_in_at_most_9_of_100() -> None:
    generator, claims = np.random.default_rng(2), 0
    for _ in range(100):
        X, y = generator.normal(size=(120, 30)), generator.integers(0, 2, 120)
        largest = (y == np.bincount(y).argmax()).astype(np.float64)
        pixels = probe_gains(generator.normal(size=(120, 10)), y)
        found = transfer_finding(probe_gains(X, y), {"pixels": pixels, "largest class": largest})
        claims += found.verdict in ("helps", "hurts")
    assert claims <= 9


def test_transfer_that_helps_is_said_with_the_arm_that_comes_nearest() -> None:
    generator = np.random.default_rng(3)
    X, y = classes(generator, 400, 20, 3.0)
    weak = probe_gains(X + generator.normal(0, 2.0, X.shape), y)
    found = transfer_finding(probe_gains(X, y), {"pixels": weak, "colours": (y == 0).astype(np.float64)}, name="net")
    assert found.verdict == "helps"
    assert "net is better than everything without it" in found.text
    assert "over pixels by" in found.text
    assert found.low is not None
    assert found.low > 0


def test_without_arms_nothing_is_claimed_and_the_command_is_named() -> None:
    found = transfer_finding(np.ones(50), {"largest class": np.zeros(50)}, missing={"pixels": "featurecache extract X"})
    assert found.verdict == "cannot tell"
    assert found.next_command == "featurecache extract X"


def candidates(*names: str) -> list[Candidate]:
    return [
        Candidate(
            name=name, num_parameters=1, num_bytes=10, order=order, command=f"train {name}", is_default=order == 2
        )
        for order, name in enumerate(names)
    ]


def test_the_cheapest_that_is_not_worse_is_recommended_and_a_worse_default_said() -> None:
    generator = np.random.default_rng(4)
    hard, y = generator.permutation(600) / 600, generator.integers(0, 2, 600)
    shallow = (hard < 0.87) | ((hard > 0.90) & (hard < 0.925))
    right = (hard < 0.70, shallow, hard < 0.90, hard < 0.80)  # the middle block is the best, the default is worse
    predictions = [np.where(each, y, 1 - y) for each in right]
    names = ("early", "shallow", "middle", "default")
    made = [
        Candidate(name=n, num_parameters=1, num_bytes=10, order=k, command=f"train {n}", is_default=n == "default")
        for k, n in enumerate(names)
    ]
    found = features_finding(y, predictions, made, measure_of("classification", 2))
    assert found.details["best"] == "middle"
    assert found.details["recommended"] == "shallow"
    assert found.next_command is not None
    assert found.next_command.endswith("train shallow")
    assert "the default, default, is worse by" in found.text
    assert found.figure is not None
    assert found.figure < 0.9  # corrected for the choice


def test_of_equally_good_sets_any_is_called_worse_in_at_most_9_of_100() -> None:
    generator, claims = np.random.default_rng(5), 0
    measure = measure_of("classification", 2)
    for _ in range(100):
        y = generator.integers(0, 2, 200)
        common = generator.random(200)
        predictions = [
            np.where(np.where(generator.random(200) < 0.3, generator.random(200), common) < 0.85, y, 1 - y)
            for _ in range(6)
        ]
        found = features_finding(y, predictions, candidates("a", "b", "c", "d", "e", "f"), measure)
        claims += any(row["verdict"] == "worse" for row in found.details["ranking"])
    assert claims <= 9


def test_more_data_is_said_to_help_where_it_does() -> None:
    generator = np.random.default_rng(6)
    sizes = np.array([20, 40, 80, 160, 320, 640])
    falling = 0.9 * sizes[:, None] ** -0.4 + generator.normal(0, 0.002, (6, 10))
    found = more_data_finding(LearningCurve(sizes, falling), n=800)
    assert found.verdict == "helps"
    assert found.details["at"] == 1280
    truth = 0.9 * 1280**-0.4
    assert 1 - found.details["predicted"] == pytest.approx(1 - truth, abs=0.01)
    flat = 0.1 + generator.normal(0, 0.001, (6, 10))
    assert more_data_finding(LearningCurve(sizes, flat), n=800).verdict == "hardly"
    rising = falling[::-1].copy()  # by chance, as where nothing is left to learn
    assert more_data_finding(LearningCurve(sizes, rising), n=800).figure >= 0
    few = more_data_finding(LearningCurve(sizes[:3], falling[:3]), n=80)
    assert few.verdict == "cannot tell"
    assert "needs about 50 samples" in few.text


def test_a_curve_is_of_rows_that_were_not_fitted_on() -> None:
    generator = np.random.default_rng(7)
    X, y = classes(generator, 200, 30, 0.0)  # nothing to learn
    Y, folds = one_hot(y, 3), np.arange(200) % 5
    curve = learning_curve(X, Y, y, lambda y, out: gains(y, out, "classification"), folds, penalty=1.0)
    assert curve.sizes[-1] == 160
    assert curve.errors.mean() > 0.55
    groups = np.arange(200) // 4
    grouped = learning_curve(
        np.repeat(X[::4], 4, axis=0), one_hot(np.repeat(y[::4], 4), 3), np.repeat(y[::4], 4),
        lambda y, out: gains(y, out, "classification"), groups % 5, groups, penalty=1.0,
    )  # fmt: skip
    assert grouped.errors.mean() > 0.5


def test_planted_copies_are_found_and_change_the_figure() -> None:
    generator = np.random.default_rng(8)
    photos = generator.normal(size=(60, 192))
    X = np.repeat(photos, 5, axis=0) + generator.normal(0, 0.15, (300, 192))
    y = np.repeat(generator.integers(0, 2, 60), 5)  # coin flips
    found = near_copies(X)
    assert len(found.pairs) == 60 * 10
    assert len(np.unique(found.group)) == 60
    apart = probe_gains(X, y)
    Y = one_hot(y, 2)
    together = gains_with_copies_together(X, Y, found.group, lambda out: gains(y, out, "classification"))
    assert apart.mean() > 0.95
    assert together.mean() < 0.65
    splits = ["train" if k % 5 else "validation" for k in range(300)]
    finding = copies_finding(found, splits, apart, together, [f"{k}.jpg" for k in range(300)])
    assert finding.verdict == "near-copies"
    assert finding.is_fatal
    assert finding.details["num_across"] == 60 * 4
    assert len(finding.details["pairs"]) == 50


def test_photographs_that_are_only_alike_are_no_copies() -> None:
    generator = np.random.default_rng(9)
    centres = generator.normal(size=(4, 64))
    X = centres[generator.integers(0, 4, 300)] * 3 + generator.normal(size=(300, 64))  # many alike, none the same
    assert len(near_copies(X).pairs) <= 3


def test_classes_that_nothing_is_judged_by_are_named() -> None:
    counts = {
        "train": {"a": 20, "b": 20, "c": 9},
        "validation": {"a": 7, "b": 4, "c": 0},
        "test": {"a": 9, "b": 9, "c": 9},
    }
    (found,) = count_findings(counts, None)
    assert (
        found.text
        == "the validation split has no sample of c and fewer than 5 of b: figures say nothing of these classes"
    )
    (groups,) = count_findings({"train": {"a": 50, "b": 50}}, 6)
    assert "there are 6 groups" in groups.text
    assert count_findings({"train": {"a": 50, "b": 50}, "test": {"a": 9, "b": 9}}, 60) == []


def test_a_planted_shortcut_is_named_and_chance_is_not() -> None:
    generator = np.random.default_rng(10)
    y, folds = np.arange(200) % 2, np.arange(200) // 2 % 5
    facts = {"bytes": generator.normal(size=200), "width": 100.0 + 50 * y + generator.normal(size=200)}
    found = shortcut_finding(facts, y, np.ones(200), folds)
    assert found.verdict == "shortcut"
    assert found.text.startswith("width alone tells the classes")
    assert found.details["by_fact"]["width"] > 0.95
    assert found.details["by_fact"]["bytes"] < 0.7
    weak = np.where(generator.random(200) < 0.15, y, generator.integers(0, 2, 200)) + generator.normal(0, 0.01, 200)
    little = shortcut_finding({"bytes": weak}, y, np.ones(200), folds)
    assert little.verdict == "none found"
    claims = 0
    for seed in range(20):
        noise = np.random.default_rng(seed)
        chance = shortcut_finding({"bytes": noise.normal(size=200)}, y, np.ones(200), folds)
        claims += chance.verdict == "shortcut"
    assert claims <= 2


def test_the_largest_gap_is_named_only_where_it_stands_out() -> None:
    generator = np.random.default_rng(11)
    zeros = np.zeros(500)
    wrong = (generator.random(500) < 0.2).astype(np.float64)
    floor = (generator.random(500) < 0.6).astype(np.float64)
    variance = diagnosis_finding(zeros, wrong, floor, commands={"variance": "more"})
    assert (variance.verdict, variance.next_command) == ("variance", "more")
    assert diagnosis_finding(wrong, wrong, floor).verdict == "bias"
    both = np.where(generator.random(500) < 0.5, wrong, 0.0)
    assert diagnosis_finding(both, wrong, floor).verdict == "cannot tell"
    far = (generator.random(300) < 0.6).astype(np.float64)
    assert diagnosis_finding(zeros, wrong, floor, target=far, target_name="webcam").verdict == "mismatch"
    near = (generator.random(300) < 0.2).astype(np.float64)
    assert diagnosis_finding(zeros, wrong, floor, target=near).verdict == "variance"


def test_deeper_is_worth_trying_only_where_a_linear_head_does_not_fit() -> None:
    wrong = (np.arange(200) % 10 == 0).astype(np.float64)
    deeper = depth_finding(wrong, next_command="featurecache train")
    assert (deeper.verdict, deeper.next_command) == ("try deeper", "featurecache train")
    fits = depth_finding(np.zeros(400), next_command="featurecache train")
    assert (fits.verdict, fits.next_command) == ("linear head", None)
    assert depth_finding(wrong[:40]).verdict == "cannot tell"
    seldom = (np.arange(240) % 80 == 0).astype(np.float64)
    assert depth_finding(seldom).verdict == "cannot tell"


def test_planted_wrong_labels_are_listed() -> None:
    pytest.importorskip("cleanlab")
    generator = np.random.default_rng(12)
    X, y = classes(generator, 400, 20, 5.0)
    planted = generator.choice(400, 20, replace=False)
    labels = y.copy()
    labels[planted] = (labels[planted] + 1) % 3
    decisions = linear_probe(X, one_hot(labels, 3), np.arange(400) % 5).out_of_fold[:, None, :]
    proba = calibrated(decisions, fit_temperature(decisions, labels))
    found = label_finding(labels, proba, [f"{k}.jpg" for k in range(400)], ["a", "b", "c"])
    listed = {int(row["name"][:-4]) for row in found.details["labels"]}
    assert len(listed & set(planted.tolist())) >= 18
    assert len(listed - set(planted.tolist())) <= 4
    first = found.details["labels"][0]
    assert first["label"] != first["suggested"]
    assert "labels are worth checking, the first" in found.text


def test_of_two_gaps_the_smaller_one_is_seldom_named() -> None:
    rng, named, floor = np.random.default_rng(3), [], np.ones(300)
    for _ in range(400):
        # By chance alike: in the sample 0.02, out of fold 0.10, on the target 0.17; so variance 0.08, mismatch 0.07.
        in_sample = (rng.random(300) < 0.02).astype(float)
        out_of_fold = np.maximum(in_sample, rng.random(300) < 0.08 / 0.98)
        target = (rng.random(150) < 0.17).astype(float)
        named.append(diagnosis_finding(in_sample, out_of_fold, floor, target=target).verdict)
    assert named.count("mismatch") <= 0.05 * len(named)
    assert named.count("bias") == 0
    # And what is larger by far is nearly always named.
    named = []
    for _ in range(100):
        in_sample = (rng.random(900) < 0.01).astype(float)
        out_of_fold = np.maximum(in_sample, rng.random(900) < 0.02)
        target = (rng.random(160) < 0.13).astype(float)
        named.append(diagnosis_finding(in_sample, out_of_fold, np.ones(900), target=target).verdict)
    assert named.count("mismatch") >= 90
    assert set(named) <= {"mismatch", "cannot tell"}
