"""Folders and tables as sources keep the contract."""

from __future__ import annotations

from pathlib import Path

from conftest import write_image

from featurecache.sources.opening import SourceSpec, source_spec
from featurecache.testing import SourceContract


class TestFolder(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        names = ("b/1.png", "b.png", "a/é 2.jpg")
        paths = [write_image(folder / name, (9, 9, 9), seed=seed) for seed, name in enumerate(names)]
        (folder / "notes.txt").write_text("no image")
        return source_spec(folder), {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def change(self, spec: SourceSpec, name: str) -> None:
        with (Path(spec.url) / name).open("ab") as file:
            file.write(b" ")


class TestTextTable(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        texts = {"7": "a dog", "é": "two\nlines", "a": "a dog", "b": ""}
        lines = [f'{name},"{text}",5' for name, text in texts.items()]
        (folder / "texts.csv").write_text("\n".join(["key,text,stars", *lines]), encoding="utf-8")
        spec = source_spec(folder / "texts.csv", text_column="text", id_column="key")
        return spec, {name: text.encode() for name, text in texts.items()}


class TestTextTableWithoutNames(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        (folder / "texts.tsv").write_text("text\tstars\na dog\t5\na cat\t4\n")
        spec = source_spec(folder / "texts.tsv", text_column="text")
        return spec, {"row 000000001": b"a dog", "row 000000002": b"a cat"}
