"""Kinds of task have the field's names; those of release 0.1 are taken where a kind is named, and written nowhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

import featurecache as fc
from featurecache.cli import main
from featurecache.errors import FormatVersionError, UnknownNameError
from featurecache.evaluation.search import evaluate_head
from featurecache.heads import registry
from featurecache.records import RECORD_VERSION, encode_record, read_record
from featurecache.specs import EARLIER_KINDS, task_kind

ARCHIVE = Path(__file__).parent / "store" / "archives" / "heads-0.1.0" / "cache"
pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("earlier", "kind"), EARLIER_KINDS.items())
def test_earlier_names_mean_the_same(earlier: str, kind: str, tmp_path: Path) -> None:
    assert task_kind(earlier) == task_kind(kind) == kind
    assert fc.list_heads(kind=earlier) == fc.list_heads(kind=kind)
    assert type(fc.make_head("knn", kind=earlier)) is type(fc.make_head("knn", kind=kind))
    table = tmp_path / "table.csv"
    table.write_text("path,label\na.png,1\nb.png,2\n")
    assert fc.labels_from_csv(table, kind=earlier).kind == kind


def test_heads_are_searched_and_registered_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)), rng.integers(0, 2, (60, 2))
    splits = {"train": (X[:40], y[:40]), "test": (X[40:], y[40:])}
    earlier, now = (evaluate_head("ridge", splits, 2, kind=kind) for kind in ("labels", "multilabel"))
    assert earlier.test == now.test
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry.register_head("constant", DummyClassifier, lambda n: [{}], kind="classes")
    assert "constant" in fc.list_heads()


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of task 'class'"):
        task_kind("class")
    with pytest.raises(UnknownNameError, match="unknown kind of task 'multilabels'; did you mean 'multilabel'"):
        fc.list_heads(kind="multilabels")


def test_a_new_task_says_its_kind_and_an_old_release_that_it_is_too_old(tmp_path: Path) -> None:
    """Releases that read records of version 1 alone say 'upgrade', instead of 'damaged'."""
    cache = Path(shutil.copytree(ARCHIVE, tmp_path / "cache"))
    assert main(["task", "add", str(cache), "new", "--from-folders", "--kind", "classes"]) == 0
    (commit,) = (cache / "tasks" / "new" / "commits").glob("*.json")
    record = json.loads(commit.read_text())
    assert (record["version"], record["body"]["kind"]) == (2, "classification")
    later = tmp_path / "record.json"
    later.write_bytes(encode_record("commit", {}, version=RECORD_VERSION + 1))
    with pytest.raises(FormatVersionError, match=f"reads up to {RECORD_VERSION}. Upgrade featurecache"):
        read_record(later, "commit")


def test_the_command_line_names_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["task", "add", "cache", "t", "x.csv", "--kind", "nonsense"])
    error = capsys.readouterr().err
    assert "nonsense" in error
    assert all(kind in error for kind in EARLIER_KINDS.values())
    assert not any(f"'{earlier}'" in error for earlier in EARLIER_KINDS)
