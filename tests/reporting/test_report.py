"""The report is one file that needs nothing else, and says what its data say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, TINY, write_image

import featurecache as fc
from featurecache.evaluation.calibration import Bin, Calibration
from featurecache.reporting.pictures import draw_map
from featurecache.reporting.report import FinalEvaluation, Gallery, ReportData, SampleMap, write_report
from featurecache.specs import ExtractionSettings
from featurecache.train import TrainingSettings
from featurecache.wording import human_bytes

pytestmark = pytest.mark.usefixtures("few_settings")

SCORES = {
    "n": 4,
    "accuracy": 0.5,
    "accuracy_low": 0.25,
    "accuracy_high": 0.75,
    "balanced_accuracy": 0.5,
    "macro_f1": 0.5,
}


def result(head: str, *, test: bool) -> dict[str, Any]:
    return {
        "head": head,
        "tap": "a:avg",
        "backbone": "n:n",
        "dtype": "float16",
        "fingerprint": "ab" * 32,
        "views": None,
        "judged_on": "plain",
        "judged_views": None,
        "params": {"C": 0.1},
        "seconds": 1.25,
        "protocol": "validation" if test else "cross-validation",
        "reported": "test" if test else "validation",
        "selection_accuracy": 0.625,
        "selection_score": 0.625,
        "balanced": False,
        "validation": SCORES,
        "test": SCORES if test else None,
    }


def make_data(classes: list[str], names: list[str], *, test: bool = True) -> ReportData:
    y_true = np.arange(4) % len(classes)
    y_pred = np.array([y_true[0], y_true[1], (y_true[2] + 1) % len(classes), (y_true[3] + 1) % len(classes)])
    proba = np.full((4, len(classes)), 0.01)
    proba[np.arange(4), y_pred] = [0.9, 0.9, 0.6, 0.8]
    confusion = np.zeros((len(classes),) * 2, np.int64)
    np.add.at(confusion, (y_true, y_pred), 1)
    return ReportData(
        title="a <b> title",
        command="featurecache run x",
        cache="c",
        feature_sets=[
            {
                "backbone": "n:n",
                "tap": "a:avg",
                "views": None,
                "rows": 9,
                "shape": [16],
                "dtype": "float16",
                "bytes": 1234,
                "num_parameters": 1000,
                "num_trainable": 0,
                "weights_source": "here",
                "preprocess": {"resize": 256, "crop": 224, "interpolation": "bicubic"},
                "fingerprint": "f" * 64,
            }
        ],
        training={
            "task": "t",
            "kind": "classification",
            "warnings": [],
            "figures": {"accuracy": "accuracy", "balanced_accuracy": "balanced", "macro_f1": "macro F1"},
            "classes": classes,
            "counts": {"train": 5, "test": 4},
            "chosen_score": {"observed": 0.625, "corrected": 0.55, "low": 0.25, "high": 0.75, "num_heads": 2},
            "results": [
                result("logistic", test=test),
                result("knn", test=test) | {"against_chosen": {"verdict": "cannot tell", "rows_needed": 1234}},
            ],
        },
        class_counts=dict.fromkeys(classes, 3),
        final=FinalEvaluation(
            split="test" if test else "validation",
            y_true=y_true,
            y_pred=y_pred,
            proba=proba,
            names=names,
            confusion=confusion,
            calibration=Calibration(0.7, 0.6, 0.8, 0.4, 0.3, 0.5, 0.123, 0.1, [Bin(2, 0.7, 0.5), Bin(2, 0.9, 0.5)]),
            outputs=[{"class": c, "n": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5} for c in classes],
        ),
        bad_inputs={"bad<.jpg": ("empty", "no bytes")},
    )


def _reads(folder: Path) -> Callable[[str], bytes | None]:
    """Return what reads the files of a folder that are there."""
    return lambda name: path.read_bytes() if (path := folder / name).exists() else None


def test_everything_is_inside_and_escaped(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(3)] + ["gone.png"]
    for i in range(3):
        write_image(tmp_path / names[i], COLOURS["red"], seed=i)
    data = make_data(["a & b", "<i>"], names)
    write_report(tmp_path / "r.html", data, read=_reads(tmp_path))
    text = (tmp_path / "r.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:image/jpeg;base64,|#)""", text)
    assert "<i>" not in text
    assert "a &amp; b" in text
    assert "a &lt;b&gt; title" in text
    assert "bad&lt;.jpg" in text
    assert "off by 0.123 on average" in text
    assert "0.625 by validation is of the one chosen among 2, so too high" in text
    assert "0.550 (0.250 to 0.750)" in text
    assert "cannot tell: about 1,234 rows would" in text
    assert "accuracy by validation (line" in text
    assert text.count("data:image/jpeg;base64,") == 1  # of the two mistakes one file is gone
    assert text.index("gone.png") < text.index("2.png")  # the more confident mistake comes first
    assert "0.500 (0.250 to 0.750, 95 % interval, 4 samples)" in re.sub(
        r"</?b>|\n", lambda m: " " * (m[0] == "\n"), text
    )


def test_what_advice_names_is_shown_in_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b<.png"):
        write_image(tmp_path / name, COLOURS["red"], seed=1)
    groups = [
        Gallery("near-copies: 1 pairs", [(("a.png", "b<.png"), "alike by 0.990")]),
        Gallery("labels worth checking: 1", [(("gone.png",), "labelled <x>, looks like y")]),
    ]
    data = replace(make_data(["a", "b"], ["x"] * 4), advice=["look"], galleries=groups)
    write_report(tmp_path / "r.html", data, read=_reads(tmp_path))
    text = (tmp_path / "r.html").read_text()
    section = text[text.index("What to do next") : text.index("<h2>Heads</h2>")]
    assert section.count("data:image/jpeg;base64,") == 2  # the file of the third is gone
    assert "alike by 0.990" in section
    assert "a.png · b&lt;.png" in section
    assert "labelled &lt;x&gt;, looks like y" in section
    assert "<x>" not in section


def test_without_a_test_split_the_split_is_named(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", make_data(["a", "b"], ["x"] * 4, test=False), read=lambda name: None)
    text = (tmp_path / "r.html").read_text()
    assert "by cross-validation" in text
    assert "validation accuracy" in text
    assert "accuracy by cross-validation" in text
    assert "test accuracy" not in text


def test_many_classes_leave_the_matrix_out(tmp_path: Path) -> None:
    data = make_data([f"class {i}" for i in range(101)], ["x"] * 4)
    write_report(tmp_path / "r.html", data, read=lambda name: None)
    assert "of 101 classes is too large to show" in (tmp_path / "r.html").read_text()


def test_the_matrix_of_many_classes_puts_those_together_that_are_taken_for_each_other(tmp_path: Path) -> None:
    num = 100
    classes = [f"class {i}" for i in range(num)]
    pairs = np.random.default_rng(0).permutation(num).reshape(-1, 2)
    counts = 10 * np.eye(num, dtype=int)
    for first, second in pairs:
        counts[first, second], counts[second, first] = 7, 6
    data = make_data(classes, ["x"] * 4)
    write_report(
        tmp_path / "r.html", replace(data, final=replace(data.final, confusion=counts)), read=lambda name: None
    )
    table = re.search(r'<table class="matrix many">(.*?)</table>', (tmp_path / "r.html").read_text(), re.DOTALL)
    assert table is not None
    lines = table[1].split("</tr>")
    heads = re.findall(r"class (\d+)", lines[0])
    place = {int(label): position for position, label in enumerate(heads)}
    assert sorted(place) == list(range(num))
    assert all(abs(place[first] - place[second]) == 1 for first, second in pairs.tolist())
    for position, line in enumerate(lines[1 : num + 1]):
        (label,) = re.findall(r'class="row">class (\d+)<', line)
        shown = [int(cell or 0) for cell in re.findall(r">(\d*)</td>", line)]
        assert int(label) == int(heads[position])
        assert shown == counts[int(label)][[int(head) for head in heads]].tolist()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (5_200_000, "5.2 MB"), (3e12, "3.0 TB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_views_are_named(tmp_path: Path) -> None:
    data = make_data(["cat", "dog"], ["1.png", "2.png", "3.png", "4.png"])
    for row in data.training["results"]:
        row.update(views=8, judged_on="views", judged_views=8)
    write_report(tmp_path / "r.html", data, read=lambda name: None)
    text = (tmp_path / "r.html").read_text()
    assert "<code>a:avg, 8 views</code>" in text
    assert "the mean of the probabilities over its 8 views" in text


def test_the_map_shows_every_class_and_the_mistakes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = [f"class {k % 12}" for k in range(60)]
    wrong = np.arange(60) % 10 == 0
    shown = SampleMap("60 samples by <their> axes", random.normal(size=(60, 2)), labels, wrong)
    write_report(tmp_path / "r.html", replace(make_data(["a", "b"], list("wxyz")), map=shown), read=lambda name: None)
    text = (tmp_path / "r.html").read_text()
    assert "60 samples by &lt;their&gt; axes" in text
    svg = draw_map(shown.points, labels, wrong)
    assert svg.startswith("<svg")
    assert all(f"<!-- {label} -->" in svg for label in sorted(set(labels))[:10])
    assert "<!-- others -->" in svg
    assert "<!-- mistakes -->" in svg
    assert "<!-- mistakes -->" not in draw_map(shown.points, labels, np.zeros(60, bool))


def test_a_run_shows_its_map_and_the_mistakes_out_of_fold(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(per_class=12)
    # Two files whose label is wrong: no head can be right about them out of fold.
    for name in ("000.png", "001.png"):
        (source / "red" / name).rename(source / "blue" / f"red-{name}")
    settings = ExtractionSettings(runtime="torch", batch_size=8)
    options = {"backbone": TINY, "training": TrainingSettings(heads=("nearest_mean",)), "settings": settings}
    done = fc.run(source, cache=tmp_path / "c", **options)
    assert done.report is not None
    text = done.report.read_text()
    assert "samples by the first two principal axes of" in text
    result = done.training.best.result
    num_wrong = int((result.selection_y != result.selection_pred).sum())
    assert num_wrong
    assert f"none of which it was fitted on then: {num_wrong} of {len(result.selection_y)}" in text
