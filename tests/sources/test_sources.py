"""Every kind of source keeps the contract."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from conftest import image_bytes, tar_bytes, write_image

from featurecache.errors import RequestError, SourceError
from featurecache.sources.decoding.arrays import array_bytes
from featurecache.sources.opening import SourceSpec, open_source, source_spec, table_options
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


class TestPathTable(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        paths = [write_image(folder / name, (9, 9, 9), seed=seed) for seed, name in enumerate(("b/1.png", "é 2.jpg"))]
        names = ["b/1.png", str(paths[1])]  # relative to the table, and absolute
        lines = [f'5,"{name}"' for name in [*names, names[0]]]  # one of them twice
        (folder / "t.csv").write_text("\n".join(["stars,file", *lines]), encoding="utf-8")
        return source_spec(folder / "t.csv"), {name: path.read_bytes() for name, path in zip(names, paths, strict=True)}

    def change(self, spec: SourceSpec, name: str) -> None:
        with (Path(spec.url).parent / name).open("ab") as file:
            file.write(b" ")


class TestZip(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        samples = {name: image_bytes(seed) for seed, name in enumerate(("b/1.png", "a.png"))}
        self.write(folder / "p.zip", samples)
        return source_spec(folder / "p.zip"), samples

    def write(self, path: Path, samples: dict[str, bytes]) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name, data in {**samples, "notes.txt": b"no image", ".hidden.png": b""}.items():
                file.writestr(name, data)

    def change(self, spec: SourceSpec, name: str) -> None:
        path = Path(spec.url.partition("::")[2])
        with zipfile.ZipFile(path) as file:
            samples = {item: file.read(item) for item in file.namelist() if item.endswith("png") and item[0] != "."}
        self.write(path, {**samples, name: samples[name] + b" "})


class TestMemoryFolder(SourceContract):
    """A folder on a file system of fsspec."""

    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        samples = {name: image_bytes(seed) for seed, name in enumerate(("b/1.png", "a/é 2.png"))}
        for name, data in samples.items():
            fsspec.filesystem("memory").pipe_file(f"/{folder.parent.name}/{name}", data)
        return source_spec(f"memory://{folder.parent.name}"), samples

    def change(self, spec: SourceSpec, name: str) -> None:
        path = f"/{spec.url.partition('://')[2]}/{name}"
        memory = fsspec.filesystem("memory")
        memory.pipe_file(path, memory.cat_file(path) + b" ")


class TestTars(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        samples = {f"p-{k // 2}.tar/{k}.png": image_bytes(k) for k in range(4)}
        for tar in ("p-0.tar", "p-1.tar"):
            write_tar(folder / tar, {name: data for name, data in samples.items() if name.startswith(tar)})
        return source_spec(str(folder / "p-{0..1}.tar")), samples

    def change(self, spec: SourceSpec, name: str) -> None:
        path = Path(spec.url).parent / name.partition("/")[0]
        with tarfile.open(path) as file:
            images = {m.name: file.extractfile(m).read() for m in file if m.name.endswith(".png")}
        of_name = name.partition("/")[2]
        write_tar(path, {f"x/{item}": data + b" " * (item == of_name) for item, data in images.items()})


class TestCompressedTarBehindUrl(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        samples = {f"p.tar.gz/{k}.png": image_bytes(k) for k in range(2)}
        write_tar(folder / "p.tar.gz", samples)
        url = f"memory://{folder.parent.name}/p.tar.gz"
        fsspec.filesystem("memory").pipe_file(url, (folder / "p.tar.gz").read_bytes())
        return source_spec(url), samples

    def change(self, spec: SourceSpec, name: str) -> None:
        memory = fsspec.filesystem("memory")
        with tarfile.open(fileobj=io.BytesIO(memory.cat_file(spec.url))) as file:
            images = {f"x/{m.name}": file.extractfile(m).read() for m in file if m.name.endswith(".png")}
        image = f"x/{name.partition('/')[2]}"
        memory.pipe_file(spec.url, tar_bytes({**images, image: images[image] + b" "}, compressed=True))


class TestHdf5Arrays(SourceContract):
    def make_source(self, folder: Path) -> tuple[SourceSpec, dict[str, bytes]]:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)
        with h5py.File(folder / "s.h5", "w") as file:
            file["scans/raw"], file["labels"] = pixels, np.arange(3)
        samples = {f"{number:09d}": array_bytes(picture) for number, picture in enumerate(pixels)}
        return source_spec(folder / "s.h5"), samples


def write_tar(path: Path, samples: dict[str, bytes]) -> None:
    path.write_bytes(tar_bytes(samples, compressed=path.suffix == ".gz"))


def test_a_column_of_names_of_files_is_the_source_whatever_it_is_called(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = [write_image(tmp_path / f"{name}.png", (9, 9, 9), seed=seed) for seed, name in enumerate("abc")]
    columns = {"stars": ["1", "2", "3"], "where it is": [path.name for path in paths], "note": ["x.png", "", "no file"]}
    frame = pandas.DataFrame(columns)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    source = open_source(tmp_path / "t.csv.gz")
    (unit,) = source.units()
    assert [entry.name for entry in source.list(unit)] == ["a.png", "b.png", "c.png"]
    frame["where it is"] = [str(path) for path in paths]
    assert len([*open_source(frame).list(unit)]) == 3
    # Two could be meant: somebody has to say which.
    frame["small"] = frame["where it is"]
    frame.to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(SourceError, match="two.csv is a table with the columns stars, where it is, note, small; name"):
        open_source(tmp_path / "two.csv")
    with pytest.raises(RequestError, match="none of the columns stars, where it is, note, small is known to name"):
        open_source(frame)


@pytest.mark.parametrize("lines", ["{name},red", "red,{name}", "{number},{name},red"])
def test_a_table_of_paths_without_a_header_names_its_first_picture_too(tmp_path: Path, lines: str) -> None:
    names = [f"photos/{number}.png" for number in range(4)]
    text = "\n".join(lines.format(name=name, number=number) for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text(text)
    for spec in (source_spec(tmp_path / "t.csv"), source_spec(tmp_path / "t.csv", has_header=False)):
        source = open_source(spec)
        assert [entry.name for unit in source.units() for entry in source.list(unit)] == names
    assert table_options(source)[-1] == "--no-header"
