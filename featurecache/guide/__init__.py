"""The guide: pages in Markdown that come with the package, for machines without a network."""

from __future__ import annotations

from importlib.resources import files

from featurecache.errors import UnknownNameError

TOPICS = {
    "getting-started": "install, the first commands, all verbs",
    "labels": "tables of labels, splits, submissions",
    "sources": "folders, tables, tars, servers, data sets, texts",
    "backbones": "networks, weights, taps, augmented views",
    "python": "the same from Python and notebooks; what you wrote elsewhere",
    "heads": "heads, options, and how the numbers are made honest; sweeps",
    "advice": "what to transfer, when, how, and would more labels help",
    "deeper": "fewer frozen layers: tails, own layers, the whole network",
    "export": "a head and its backbone as one file",
    "large": "large data and GPUs, memory, what is on disk",
    "figures": "what was measured, and by which command; promises and their trials",
    "format": "the files of a cache, for readers in other languages",
    "glossary": "the words of these pages",
}
"""Topics of the guide, in the order in which one would read them."""


def page(topic: str) -> str:
    """Return one page as Markdown.

    Parameters
    ----------
    topic : str
        One of `TOPICS`.

    Raises
    ------
    UnknownNameError
        No such topic.
    """
    if topic not in TOPICS:
        raise UnknownNameError("topic", topic, list(TOPICS), advice="`featurecache guide` lists them")
    package = files("featurecache")
    # The format stands beside the code that writes it, where whoever changes one sees the other.
    path = package / "store" / "FORMAT.md" if topic == "format" else package / "guide" / f"{topic}.md"
    return path.read_text(encoding="utf-8")
