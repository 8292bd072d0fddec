"""Without labels: clusters that come again, near-copies, outliers, and which samples to label first or next."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_cache, write_image
from sklearn.metrics import adjusted_rand_score

import featurecache as fc
from featurecache.advice import axes
from featurecache.advice.active_learning import choose_samples
from featurecache.advice.probe import linear_probe, one_hot, predict_new
from featurecache.advice.structure import stable_clusters, structure_findings
from featurecache.errors import MissingExtraError, RequestError

Call = Callable[..., tuple[int, str, str]]


def groups_of(n: int, num: int, seed: int, *, apart: float = 4.0, d: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % num
    return apart * rng.normal(size=(num, d))[y] + rng.normal(size=(n, d)), y


@pytest.mark.parametrize("num", [2, 5, 9])
def test_clusters_that_are_there_are_found(num: int) -> None:
    X, y = groups_of(300, num, seed=num)
    found = stable_clusters(X)
    assert found.count == num
    assert adjusted_rand_score(y, found.of_sample) > 0.95
    assert found.low <= found.stability <= found.high


def test_clusters_are_claimed_of_noise_in_at_most_1_of_12() -> None:
    claims = sum(stable_clusters(np.random.default_rng(seed).normal(size=(100, 20))).count > 1 for seed in range(12))
    assert claims <= 1


def test_one_factor_that_all_vary_in_is_no_clusters() -> None:
    """Such as brightness: it divides any samples in two that come again, and no two groups are there."""
    rng = np.random.default_rng(0)
    for strength in (1.0, 2.0):
        X = strength * rng.normal(size=(300, 1)) * np.ones(64) + rng.normal(size=(300, 64))
        assert stable_clusters(X).count == 1


def test_samples_that_are_all_the_same_have_no_clusters_and_are_all_copies() -> None:
    names = [f"{index}.png" for index in range(40)]
    found = structure_findings(np.ones((40, 8)), names)
    assert found[0].verdict == "no clusters"
    assert all(np.isfinite(finding.figure or 0) for finding in found)


def test_copies_of_a_few_patterns_do_not_make_the_others_outliers() -> None:
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(10, 30)), 10, axis=0)
    X = np.concatenate([copies, rng.normal(size=(60, 30))])
    names = [f"{index}.png" for index in range(len(X))]
    assert [finding.verdict for finding in structure_findings(X, names)][2] == "none found"


def test_what_is_far_from_all_is_listed_and_copies_are_counted() -> None:
    X, _ = groups_of(200, 4, seed=0)
    X[0], X[1] = -3 * X[0], -3 * X[50]
    X[100] = X[101] + 1e-3
    names = [f"{index}.png" for index in range(len(X))]
    clusters, copies, outliers, start = structure_findings(X, names)
    assert {row["name"] for row in outliers.details["outliers"]} == {"0.png", "1.png"}
    assert [(pair["first"], pair["second"]) for pair in copies.details["pairs"]] == [("100.png", "101.png")]
    assert len(clusters.details["map"]) == 200
    assert (start.figure, len(set(start.details["label_next"]))) == (10 * clusters.details["sizes"].__len__(), 40)


def test_labels_chosen_so_teach_more_than_random_ones() -> None:
    """Rare classes among many: random labels miss them for long."""
    gained = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        shares = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
        y = rng.choice(6, 500, p=shares)
        X = 1.5 * np.random.default_rng(99).normal(size=(6, 30))[y] + rng.normal(size=(500, 30))
        pool, held_out = np.arange(350), np.arange(350, 500)
        scores = {}
        for name in ("chosen", "random"):
            labelled, accuracy = np.empty(0, np.int64), []
            for count in (6, 6, 12, 24):
                free = np.setdiff1d(pool, labelled)
                new = (
                    choose_samples(X[pool], labelled, y[labelled], 6, count, random_state=seed)
                    if name == "chosen"
                    else rng.permutation(free)[:count]
                )
                assert len(np.unique(new)) == count
                assert not np.isin(new, labelled).any()
                labelled = np.concatenate([labelled, new])
                Y = one_hot(y[labelled], 6)
                penalty = linear_probe(X[labelled], Y, np.arange(len(labelled)) % 5).penalty
                answers = predict_new(X[labelled], Y, X[held_out], penalty).argmax(axis=1)
                accuracy.append(np.mean([(answers[y[held_out] == k] == k).mean() for k in range(6)]))
            scores[name] = np.mean(accuracy)
        gained.append(scores["chosen"] - scores["random"])
    assert np.mean(gained) > 0.03
    assert np.mean(np.array(gained) > 0) > 0.7


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("unlabelled"), per_class=15)


def test_the_command_line_without_a_task(cache: Path, tmp_path: Path, call: Call) -> None:
    status, out, err = call("advise", cache, "--unlabelled", "--label-next", 4, "--tables", tmp_path / "t", "--json")
    assert status == 0, err
    found = json.loads(out)["findings"]
    assert [finding["question"] for finding in found] == ["structure"] * 3 + ["more_data"]  # near-copies all
    assert found[0]["verdict"] == "clusters"
    assert found[0]["details"]["sizes"] == [15, 15, 15]
    assert len(found[-1]["details"]["label_next"]) == 4
    tables = {path.name for path in (tmp_path / "t").iterdir()}
    assert tables >= {"structure_map.csv", "more_data_label_next.csv"}
    with (tmp_path / "t" / "more_data_label_next.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == found[-1]["details"]["label_next"]
    _, out, _ = call("advise", cache, "--unlabelled", "--wide")
    assert "What is in it, without labels?\n  3 clusters come again, of 15, 15, 15 samples" in out


def test_new_images_are_ranked_for_a_task(cache: Path, tmp_path: Path, call: Call) -> None:
    for index, colour in enumerate(COLOURS.values()):
        write_image(tmp_path / "new" / f"{index}.png", colour, seed=900 + index)
    with pytest.raises(RequestError, match="every cached sample has a label of task 'colour'; extract those without"):
        fc.advise(cache, "colour", only=["what"], label_next=2)
    extract = ["extract", tmp_path / "new", "--cache", cache, "--backbone", TINY, *RUNTIME, "--tap", "pre_logits:none"]
    assert call(*extract)[0] == 0
    *_, found = fc.advise(cache, "colour", only=["what"], label_next=2)
    assert (found.question, found.verdict, found.n) == ("more_data", "label these", 3)
    assert set(found.details["label_next"]) < {"0.png", "1.png", "2.png"}


def test_requests_that_make_no_sense_are_one_line(cache: Path, tmp_path: Path, call: Call) -> None:
    for options, said in {
        ("--unlabelled", "--only", "when"): "are for questions about a task; name it with --task",
        ("--unlabelled", "--target-domain", "a/*"): "are for questions about a task; name it with --task",
        ("--unlabelled", "--label-next", "0"): "--label-next must be at least 1, got 0",
        ("--unlabelled", "--tables", str(cache / "FORMAT.json")): "no folder can be made there",
    }.items():
        status, _, err = call("advise", cache, *options)
        assert status == 2
        assert said in err
    few = write_cache(tmp_path, per_class=5)
    shutil.rmtree(few / "tasks")
    status, _, err = call("advise", few)
    assert status == 2
    assert "holds no task; ask for what can be said without one (--unlabelled, --label-next N)" in err
    with pytest.raises(RequestError, match="holds 15 samples with features; structure takes 20 at least"):
        fc.advise(few, unlabelled=True)


def test_a_map_by_neighbours_keeps_groups_together_or_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = groups_of(120, 3, seed=0)
    assert axes.plane_of(np.ones((5, 1))).shape == (5, 2)
    assert axes.plane_of(X).shape == (120, 2)
    if axes.find_spec("umap") is not None:
        plane = axes.plane_of(X, "umap")
        centres = np.stack([plane[y == k].mean(axis=0) for k in range(3)])
        assert (np.linalg.norm(plane[:, None] - centres, axis=2).argmin(axis=1) == y).mean() > 0.95
        np.testing.assert_array_equal(plane, axes.plane_of(X, "umap"))
    monkeypatch.setattr(axes, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="umap-learn, which --map umap needs, is not installed"):
        axes.plane_of(X, "umap")


def test_a_map_is_about_what_has_no_labels(tmp_path: Path, call: Call) -> None:
    status, _, err = call("advise", tmp_path, "--task", "t", "--map", "umap")
    assert status == 2
    assert "--map is about --unlabelled; add that, or leave --map out" in err
