"""A head for a target domain without labels: the source alone unless the target bears another way out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, RUNTIME, TINY, write_image

import featurecache as fc
from featurecache.cli import main
from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.adapting import AdaptationReport, adapt_heads
from featurecache.evaluation.agreement import choose_by_agreement
from featurecache.heads.adaptation import fit_adaptation
from featurecache.heads.bundle import load_head
from featurecache.heads.fitting import fit_head
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("few_settings")  # which way is taken does not hang on the finest one

Call = Callable[..., tuple[int, str, str]]
PER_CLASS = 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours by two cameras, of which the second is dark and has a cast; only the first one's have labels."""
    folder = tmp_path_factory.mktemp("adapting")
    casts = {"sun": np.array([1.0, 1.0, 1.0]), "lamp": np.array([0.5, 0.35, 0.2])}
    for camera, (domain, cast) in enumerate(casts.items()):
        for number, (name, colour) in enumerate(COLOURS.items()):
            for index in range(PER_CLASS):
                seed = 1000 * camera + 100 * number + index
                # Of their own strength and light each, or all of one colour would be near-copies.
                rng = np.random.default_rng(seed)
                scene = rng.uniform(0.35, 0.5) * np.array(colour) + rng.uniform(40, 100, 3)
                seen = tuple(int(value) for value in scene * cast)
                write_image(folder / "photos" / domain / name / f"{index:02}.png", seen, seed=seed)
    extract = ["extract", str(folder / "photos"), "--cache", str(folder / "c"), "--backbone", TINY, *RUNTIME]
    assert main([*extract, "--quiet"]) == 0
    add_task(folder / "c", "sun_only", {"sun": "right"})
    add_task(folder / "c", "both", {"sun": "right", "lamp": "right"})
    add_task(folder / "c", "wrong", {"sun": "right", "lamp": "wrong"})
    return folder / "c"


def add_task(cache: Path, name: str, domains: dict[str, str]) -> None:
    """Label some domains, right or wrong; of the first one a part is for validation and test."""
    table = cache.with_name(f"{name}.csv")
    colours = list(COLOURS)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for domain, how in domains.items():
            for number, colour in enumerate(colours):
                label = colour if how == "right" else colours[(number + 1) % len(colours)]
                for index in range(PER_CLASS):
                    split = ("test", "validation", "train", "train")[index % 4] if domain == "sun" else "train"
                    writer.writerow([f"{domain}/{colour}/{index:02}.png", label, split])
    assert main(["task", "add", str(cache), name, str(table), "--json"]) == 0


def adapted(cache: Path, task: str, method: str = "auto", domain: str = "lamp/*") -> AdaptationReport:
    store = FeatureStore.open(cache)
    (feature_set,) = store.feature_sets()
    return adapt_heads(store, store.task(task), feature_set, domain, method)


def test_labels_of_the_target_change_nothing_but_what_is_shown(cache: Path) -> None:
    reports = {task: adapted(cache, task) for task in ("sun_only", "both", "wrong")}
    for report in reports.values():
        assert report.num_target == 3 * PER_CLASS
        assert [head.method for head in report.heads][:4] == ["source", "standardize", "coral", "subspace"]
        assert report.chosen.method == reports["both"].chosen.method
        for head, other in zip(report.heads, reports["both"].heads, strict=True):
            assert head.agreement == other.agreement
            np.testing.assert_array_equal(head.head.result.estimator.coef_, other.head.result.estimator.coef_)
    assert reports["sun_only"].num_labeled == 0
    assert reports["sun_only"].chosen.accuracy is None
    right, wrong = (reports[task].chosen.accuracy for task in ("both", "wrong"))
    assert right is not None
    assert wrong is not None
    assert right[0] > 0.9 > 0.1 > wrong[0]


def test_another_camera_is_adapted_to_and_the_same_one_is_not(cache: Path) -> None:
    report = adapted(cache, "both")
    source = report.heads[0].accuracy
    assert source is not None
    assert report.chosen.accuracy is not None
    assert report.chosen is not report.heads[0]
    assert report.chosen.agreement.low > 0
    assert report.chosen.accuracy[0] > source[0] + 0.1
    same = adapted(cache, "sun_only", domain="test")
    assert same.chosen is same.heads[0]
    assert same.num_source + same.num_target == 3 * PER_CLASS


@pytest.mark.parametrize("method", ["coral", "em", "bbse"])
def test_a_way_that_is_named_is_taken(cache: Path, method: str) -> None:
    report = adapted(cache, "both", method)
    assert [head.method for head in report.heads] == ["source", method]
    assert report.chosen.method == method


def test_the_kept_head_answers_for_the_target_as_the_table_says(cache: Path, call: Call) -> None:
    train = ["train", cache, "--task", "both", "--adapt", "auto", "--target-domain", "lamp/*", "--quiet"]
    status, out, err = call(*train, "--save", "adapted", "--json")
    assert status == 0, err
    document = json.loads(out)
    chosen = next(way for way in document["methods"] if way["method"] == document["chosen"])
    assert (document["num_source"], document["num_target"], document["num_labelled"]) == (120, 120, 120)
    _, meta, _ = load_head(Path(document["saved"]))
    assert meta["adaptation"] == {"method": chosen["method"], "target_domain": "lamp/*", "target_samples": 120}
    lamp = cache.parent / "photos" / "lamp"
    status, out, _ = call("predict", document["saved"], lamp, "--json", "--backbone", TINY, *RUNTIME)
    assert status == 0
    found = json.loads(out)["predictions"]
    right = np.mean([item["label"] == Path(item["path"]).parent.name for item in found])
    assert right == pytest.approx(chosen["accuracy"]["value"])
    _, out, _ = call(*train)
    assert "120 samples of the source, 120 of lamp/*" in out
    assert "120 of them have labels, by which nothing was chosen" in out


def test_advice_names_the_command_and_it_can_be_typed(cache: Path, call: Call) -> None:
    import shlex

    (finding,) = fc.advise(cache, "both", only=["adaptation"], target_domain="lamp/*")
    report = adapted(cache, "both")
    chosen = report.chosen
    assert (finding.verdict, finding.figure, finding.n) == (chosen.method, chosen.agreement.difference, 120)
    assert finding.next_command is not None
    assert call(*shlex.split(finding.next_command)[1:])[0] == 0
    # Where the target has no labels there is no error to compare, and still an answer.
    found = {finding.question: finding for finding in fc.advise(cache, "sun_only", target_domain="lamp/*")}
    assert found["adaptation"].verdict == report.chosen.method
    assert "lamp/*" not in found["diagnosis"].details["errors"]
    (finding,) = fc.advise(cache, "sun_only", only=["adaptation"], target_domain="validation")
    assert finding.verdict == "source only"
    assert finding.next_command is None
    with pytest.raises(RequestError, match="adaptation is to samples of a target; name them with --target-domain"):
        fc.advise(cache, "both", only=["adaptation"])


def test_what_stands_in_the_way_of_adapting_costs_no_other_answer(cache: Path) -> None:
    """All samples but those of the target are for training: there is nothing to judge the source by."""
    add_task(cache, "few", {"sun": "right"})
    store = FeatureStore.open(cache)
    task = store.task("few")
    table = cache.with_name("two.csv")
    names = store.samples.uris_of(store.samples.rows_of(task.ids))
    rows = [f"{name},{name.split('/')[1]},{('train', 'validation')[index % 2]}" for index, name in enumerate(names)]
    table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    assert main(["task", "add", str(cache), "two", str(table), "--json"]) == 0
    found = {finding.question: finding for finding in fc.advise(cache, "two", target_domain="validation")}
    assert found["diagnosis"].details["errors"]["validation"]["n"] == len(rows) // 2
    assert found["adaptation"].verdict == "cannot tell"
    assert "a source needs train samples, and others to judge by" in found["adaptation"].text
    with pytest.raises(TaskError, match="a source needs train samples"):
        fc.advise(cache, "two", only=["adaptation"], target_domain="validation")


def test_a_class_that_nothing_was_judged_by_has_no_share_by_bbse(cache: Path) -> None:
    table = cache.with_name("unseen.csv")
    lines = []
    for colour in COLOURS:
        for index in range(PER_CLASS):
            able = ("train", "train" if colour == "red" else "validation", "train", "test")
            lines.append(f"sun/{colour}/{index:02}.png,{colour},{able[index % 4]}")
    table.write_text("\n".join(["path,label,split", *lines]) + "\n")
    assert main(["task", "add", str(cache), "unseen", str(table), "--json"]) == 0
    with pytest.raises(TaskError, match="class 'red' is in no sample that the head was judged by, so bbse cannot"):
        adapted(cache, "unseen", "bbse")


def test_the_kept_head_takes_samples_of_the_target_for_usual(cache: Path, call: Call) -> None:
    train = ["train", cache, "--task", "both", "--adapt", "standardize", "--target-domain", "lamp/*", "--quiet"]
    assert call(*train, "--save", "usual")[0] == 0
    lamp = cache.parent / "photos" / "lamp"
    predict = ["predict", cache / "heads" / "usual", lamp, "--json", "--backbone", TINY, *RUNTIME, "--outliers"]
    found = json.loads(call(*predict)[1])["predictions"]
    assert sum(item["is_outlier"] for item in found) <= 0.1 * len(found)


def test_without_a_shift_nothing_is_adapted_to_also_where_samples_come_in_bursts(tmp_path: Path) -> None:
    """Near-copies agree whatever the head; counted as samples of their own they made two of five claims."""
    claims = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        means = 1.2 * np.random.default_rng(99).normal(size=(3, 12))
        y = np.arange(90) % 3
        X = means[y] + rng.normal(size=(90, 12))
        once = means[np.arange(16) % 3] + rng.normal(size=(16, 12))
        target = np.repeat(once, 5, axis=0) + 0.01 * rng.normal(size=(80, 12))
        alike, answers = np.repeat(np.arange(16), 5), []
        for method in ("source", "standardize", "coral", "subspace"):
            found = fit_adaptation(method, X, y, target)
            head = fit_head("logistic", found.of_source(X).astype(np.float32), y, C=0.01)
            answers.append(np.asarray(head.predict(found.of_target(target).astype(np.float32)), np.int64))
        claims += choose_by_agreement(target, answers, alike)[0] != 0
    assert claims <= 2


def test_requests_that_make_no_sense_are_one_line(cache: Path, call: Call) -> None:
    train = ["train", cache, "--task", "both"]
    target = ["--target-domain", "lamp/*"]
    for options, said in {
        ("--adapt", "auto"): "--adapt goes with --target-domain; name both, or neither",
        tuple(target): "--target-domain goes with --adapt; name both, or neither",
        ("--adapt", "auto", *target, "--head", "knn"): "--adapt trains the logistic head, and no knn; leave --head out",
        ("--adapt", "auto", *target, "--balanced"): "--adapt trains one plain logistic head; leave --balanced out",
        ("--adapt", "auto", "--target-domain", "moon/*"): "no sample with features has a path that fits 'moon/*'",
        ("--adapt", "auto", "--target-domain", "*"): "no other sample with features has a path that fits '*'",
    }.items():
        status, _, err = call(*train, *options)
        assert status == 2
        assert said in err
    with pytest.raises(RequestError, match="unknown way to adapt 'magic'"):
        adapted(cache, "both", "magic")
    with pytest.raises(TaskError, match="outside the target domain; a source needs train samples"):
        adapted(cache, "sun_only", domain="sun/*")
    table = cache.with_name("sizes.csv")
    lines = [f"sun/{colour}/{index:02}.png,{index}" for colour in COLOURS for index in range(PER_CLASS)]
    table.write_text("\n".join(["path,label", *lines]) + "\n")
    assert main(["task", "add", str(cache), "sizes", str(table), "--kind", "regression", "--json"]) == 0
    with pytest.raises(RequestError, match="adapting takes a task of classes; 'sizes' is of kind regression"):
        adapted(cache, "sizes")
    with pytest.raises(RequestError, match=r"the target domain lamp/red/0\[012\].png has 3 samples with features"):
        adapted(cache, "sun_only", domain="lamp/red/0[012].png")
