"""The guide that comes with the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY

from featurecache.errors import UnknownNameError
from featurecache.guide import TOPICS, page

Call = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.quick


def test_every_page_is_a_topic() -> None:
    pages = {path.stem for path in (REPOSITORY / "featurecache" / "guide").glob("*.md")}
    assert pages == set(TOPICS) - {"format"}
    assert all(page(topic).startswith("# ") for topic in TOPICS)
    assert page("format") == (REPOSITORY / "featurecache" / "store" / "FORMAT.md").read_text()


def test_pages_are_printed_as_they_are(call: Call) -> None:
    status, out, err = call("guide", "heads")
    assert (status, out, err) == (0, page("heads"), "")
    status, out, _ = call("guide", "heads", "--json")
    assert status == 0
    assert json.loads(out)["text"] == page("heads")


def test_topics_are_listed(call: Call) -> None:
    status, out, _ = call("guide")
    assert status == 0
    assert all(topic in out for topic in TOPICS)
    assert "featurecache guide TOPIC" in out
    status, out, _ = call("guide", "--json")
    assert set(json.loads(out)["topics"]) == set(TOPICS)


def test_an_unknown_topic_names_the_nearest(call: Call) -> None:
    with pytest.raises(UnknownNameError, match="topic"):
        page("head")
    status, _, err = call("guide", "head")
    assert status == 2
    assert "did you mean heads" in err.lower() or "'heads'" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["../store/FORMAT", "/etc/passwd", ""])
def test_a_topic_is_no_path(name: str, call: Call) -> None:
    assert call("guide", name)[0] == 2


def test_pages_are_in_the_built_package() -> None:
    declared = (REPOSITORY / "pyproject.toml").read_text()
    assert '"guide/*.md"' in declared
    assert '"sources/decoding/reference.*"' in declared
    assert Path(REPOSITORY / "featurecache" / "guide" / "__init__.py").is_file()
