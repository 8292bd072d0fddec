"""What a folder holds beside images is counted, and what somebody will miss of it is named where people look."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RUNTIME, TINY, need, write_image
from PIL import Image, features

from featurecache.errors import SourceError
from featurecache.ignored import IgnoredFiles, begins_like_an_image
from featurecache.sources.decoding.images import decode, load_image
from featurecache.sources.entries import Entries
from featurecache.sources.folder import FolderSource
from featurecache.sources.inputs import inputs_of
from featurecache.sources.opening import open_sources
from featurecache.sources.source import check_source
from featurecache.specs import PreprocessSpec
from featurecache.store.schemas import IgnoredBody, checked_body

pytestmark = pytest.mark.quick

Call = Callable[..., tuple[int, str, str]]
SPEC = PreprocessSpec(resize=32, crop=32)


def smooth(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def ignored(folder: Path) -> IgnoredFiles:
    return Entries.of(FolderSource(folder)).ignored


def put(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images, one without, and much else."""
    source = tmp_path / "photos"
    for number in range(6):
        image = write_image(source / "cats" / f"{number}.png", (200, 0, 0), seed=number)
        write_image(source / "dogs" / f"{number}.JPG", (0, 0, 200), seed=50 + number)
    put(source, "cats/raw.CR2", "birds/a.nef", "birds/b.nef", "birds/c.Psd")
    for name in ("cats/no_suffix", "cats/photo.jpg_large", "dogs/photo.jpeg.1", "dogs/2.jpg "):
        shutil.copy(image, source / name)
    put(source, "notes.txt", "cats/Thumbs.db", "dogs/1.json", "README", "dogs/odd.thing")
    put(source, ".DS_Store", "cats/._1.png", ".git/config")
    (source / "fish").mkdir()
    return source


def test_every_file_is_counted_and_what_is_missed_is_told_from_notes(folder: Path) -> None:
    found = ignored(folder)
    assert found.images == {".cr2": 1, ".nef": 2, ".psd": 1, "": 1, ".jpg_large": 1, ".1": 1, ".jpg ": 1}
    assert found.others == {".txt": 1, ".db": 1, ".json": 1, "": 1, ".thing": 1, "hidden": 3}
    assert (found.folders, found.num_folders, found.count) == (("birds", "fish"), 2, 16)
    (warning,) = found.warnings()
    assert (warning.kind, warning.count, len(warning.examples)) == ("ignored_files", 8, 5)
    assert warning.text.startswith("8 files left out by name: 2 .nef, 1 without suffix, 1 .1, ")
    assert warning.text.endswith("; 2 class folders have no image: 'birds', 'fish'")
    assert "give them that of their format, e.g. .jpg" in warning.text


def test_notes_and_what_systems_leave_behind_are_no_warning(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png", (9, 9, 9), seed=0)
    put(tmp_path, "a/Thumbs.db", "a/.DS_Store", "a/desktop.ini", "labels.csv", "LICENSE", "a/1.xml", "a/1.txt")
    assert ignored(tmp_path).warnings() == []
    assert ignored(tmp_path).count == 7


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (("a/1.png", "b/notes.txt"), ("b",)),
        (("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/Thumbs.db"), ("val/b",)),
        (("a/1.png", "b/c/d/"), ("b",)),
        (("a/deep/er/1.png",), ()),
        (("1.png", "thumbs/x.db"), ("thumbs",)),
        (("a/1.png", ".hidden/x.txt"), ()),
    ],
)
def test_a_folder_without_an_image_in_or_below_it_is_named(
    tmp_path: Path, paths: tuple[str, ...], named: tuple[str, ...]
) -> None:
    for path in paths:
        if path.endswith("/"):
            (tmp_path / path).mkdir(parents=True)
        elif path.endswith(".png"):
            write_image(tmp_path / path, (9, 9, 9), seed=0)
        else:
            put(tmp_path, path)
    assert ignored(tmp_path).folders == named
    if len(named) == 1:
        assert f"class folder '{named[0]}' has no image" in ignored(tmp_path).warnings()[0].text


def test_a_folder_that_was_entered_by_another_name_is_not_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png", (9, 9, 9), seed=0)
    (tmp_path / "again").symlink_to("a")
    assert ignored(tmp_path).folders == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "AVIF", "HEIF"])
def test_pictures_are_told_by_their_first_bytes(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        need("pillow_heif")
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    smooth().save(tmp_path / "it", kind)
    assert begins_like_an_image(str(tmp_path / "it"))


def test_no_picture_is_seen_where_none_is(tmp_path: Path) -> None:
    for content in (b"", b"BM", b"BMW drivers", b"II", b"RIFF1234WAVE", b"0000ftypmp42", bytes(200), b"%PDF-1.7"):
        put(tmp_path, "it", content=content)
        assert not begins_like_an_image(str(tmp_path / "it"))
    assert not begins_like_an_image(str(tmp_path))


def test_a_folder_of_nothing_but_other_pictures_says_which(tmp_path: Path) -> None:
    put(tmp_path, "1.cr3", "2.cr3", "notes.txt")
    for call in (Entries.of, check_source):
        with pytest.raises(SourceError, match="holds no images; .*; 2 files left out by name: 2 .cr3"):
            call(FolderSource(tmp_path))


def test_a_million_suffixes_make_no_record_too_long(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", (9, 9, 9), seed=0)
    put(tmp_path, *(f"file.{number}" for number in range(300)))
    (tmp_path / "folders").mkdir()
    found = ignored(tmp_path)
    assert found.count == 300
    assert len(found.others) <= 51
    checked_body(json.loads(json.dumps(found.to_json())), IgnoredBody, "here")
    assert IgnoredFiles.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.full
def test_every_verb_says_it_and_the_cache_keeps_it(folder: Path, tmp_path: Path, call: Call) -> None:
    cache, said = tmp_path / "c", "8 files left out by name: 2 .nef"
    status, out, _ = call("run", folder, "--cache", cache, "--backbone", TINY, "--head", "ridge", "--json", *RUNTIME)
    assert (status, [w["kind"] for w in json.loads(out)["warnings"]].count("ignored_files")) == (0, 1)
    for words in (["extract", folder, "--cache", cache, "--backbone", TINY, *RUNTIME], ["info", cache]):
        status, out, _ = call(*words)
        assert (status, out.count(f"warning: {said}")) == (0, 1)
        status, out, _ = call(*words, "--json")
        document = json.loads(out)
        found = document["warnings"] if "warnings" in document else document["sources"][0]["warnings"]
        assert [w["count"] for w in found if w["kind"] == "ignored_files"] == [8]
    predict = ["predict", cache / "heads/run", folder, "--backbone", TINY, *RUNTIME]
    out = call(*predict)[1]
    assert (said in out, "class folder" in out) == (True, False)
    _, out, err = call(*predict, "--csv")
    assert (len(out.splitlines()), said in err) == (13, True)
    warnings = json.loads(call(*predict, "--json")[1])["warnings"]
    assert [(w["kind"], w["count"]) for w in warnings] == [("ignored_files", 8)]
    (folder / "birds" / "a.nef").unlink()
    assert "7 files left out by name" in call("info", cache, "--source", folder)[1]
    assert call("extract", folder, "--cache", cache, "--backbone", TINY, *RUNTIME)[0] == 0
    assert "7 files left out by name" in call("info", cache)[1]


def test_predict_names_images_that_became_flat(tmp_path: Path, folder: Path, call: Call) -> None:
    run = ["run", folder, "--cache", tmp_path / "c", "--backbone", TINY, "--head", "ridge", *RUNTIME]
    assert call(*run)[0] == 0
    dark = np.random.default_rng(0).integers(0, 511, (40, 40)).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    predict = ["predict", tmp_path / "c/heads/run", tmp_path / "dark.png", folder / "cats/1.png", "--backbone", TINY]
    found = json.loads(call(*predict, "--json", *RUNTIME)[1])["warnings"]
    assert [(w["kind"], w["count"], w["examples"]) for w in found] == [("flat_images", 1, [str(tmp_path / "dark.png")])]


@pytest.mark.parametrize(("kind", "suffix"), [("AVIF", ".avif"), ("JPEG2000", ".jp2"), ("HEIF", ".HEIC")])
def test_formats_of_phones_and_scanners_are_read(tmp_path: Path, kind: str, suffix: str) -> None:
    if kind == "HEIF":
        need("pillow_heif")
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "zlib")):
        pytest.skip(f"this Pillow has no {kind}")
    import featurecache.sources.decoding.images  # noqa: F401 - registers HEIC

    path = tmp_path / f"it{suffix}"
    smooth().save(path, kind)
    assert list(Entries.of(FolderSource(tmp_path)).names) == [path.name]
    assert [each.name for each in inputs_of(*open_sources([tmp_path]))] == [str(path)]
    shown = load_image(path.read_bytes(), SPEC).astype(int)
    plain = io.BytesIO()
    smooth().save(plain, "PNG")
    assert np.abs(shown - load_image(plain.getvalue(), SPEC)).mean() < 6


def test_a_photo_of_a_phone_is_turned_upright(tmp_path: Path) -> None:
    need("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: show rotated 90 degrees clockwise
    out = io.BytesIO()
    smooth(64, 48).save(out, "HEIF", exif=exif.tobytes(), quality=95)  # as phones do, turned by the container too
    upright = smooth(64, 48).rotate(-90, expand=True)
    shown = decode(out.getvalue(), SPEC).image
    assert shown.size == upright.size
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(upright)).mean() < 6


def test_a_broken_heic_is_a_bad_input_and_a_cut_one_too(tmp_path: Path, call: Call) -> None:
    need("pillow_heif")
    source = tmp_path / "photos"
    write_image(source / "a" / "1.png", (9, 90, 9), seed=0)
    put(source, "b/1.heic", content=b"\0\0\0\x18ftypheic" + bytes(64))
    out = io.BytesIO()
    smooth().save(out, "HEIF")
    put(source, "b/2.heic", content=out.getvalue()[: len(out.getvalue()) // 2])
    words = ["extract", source, "--cache", tmp_path / "c", "--backbone", TINY, "--max-bad", "1", "--json", *RUNTIME]
    status, out_text, _ = call(*words)
    assert (status, [bad["path"] for bad in json.loads(out_text)["bad"]]) == (0, ["b/1.heic", "b/2.heic"])


def test_without_pillow_heif_the_line_that_brings_it_is_given(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    write_image(source / "cats" / "1.png", (9, 90, 9), seed=0)
    put(source, "birds/1.HEIC", "birds/2.heic", "cats/3.heif")
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from featurecache.sources.entries import Entries; from featurecache.sources.folder import FolderSource\n"
        "print(Entries.of(FolderSource(sys.argv[1])).ignored.warnings()[0].text)"
    )
    said = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, check=True).stdout
    assert said.startswith("3 files left out by name: 2 .heic, 1 .heif (HEIC is read with: pip install ")
    assert "class folder 'birds' has no image" in said
