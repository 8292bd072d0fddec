"""Files that a folder holds and that are no inputs by their name: which of them somebody will miss.

Pictures of formats that are not read here, and pictures without a suffix or with another one, are missed: of them a
warning is given. Notes, tables and what operating systems leave behind are counted only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featurecache.errors import MAX_EXAMPLES, ReportWarning, install_command, shortened
from featurecache.files import open_regular
from featurecache.records import PlainValues
from featurecache.wording import counted


def _suffixes(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


HEIC_SUFFIXES = _suffixes("heic heics heif heifs hif")
_RAW = _suffixes(
    "3fr ari arw bay cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
)
_OTHER_IMAGES = _suffixes(
    "ai avif cur dcm dds dicom emf eps exr fits fit fts hdr icns ico j2c j2k jls jp2 jpc jpf jpx jxl jxr kra mrxs ndpi "
    "nii pbm pcx pgm pic pnm ppm psb psd qoi ras sgi svg svs tga wdp wmf xbm xcf xpm"
)
_NO_IMAGES = _suffixes(
    "7z aac aae avi bat bz2 c cfg conf cpp csv db doc docx flac gz h h5 hdf5 htm html ini ipynb js json jsonl lnk log "
    "m m4a m4v mat md mkv mov mp3 mp4 mpg npy npz odt parquet pdf pkl ppt pptx pt pth py rar rst rtf safetensors sh "
    "sqlite srt tab tar tex thm toml tsv txt url wav wmv xls xlsx xml xmp yaml yml zip zst"
)
_BEGINNINGS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"8BPS"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a"),
)
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_BRANDS = (b"avif", b"avis", *HEIC_BRANDS)
_MOST_OPENED = 200
"""Files of an unknown suffix whose first bytes are read: a scan of millions must stay one of names."""
_MOST_SUFFIXES, _MOST_FOLDERS = 50, 20
HIDDEN = "hidden"


@dataclass(frozen=True, kw_only=True)
class IgnoredFiles(PlainValues):
    """What a folder holds that is no input.

    Attributes
    ----------
    images, others : mapping of str to int
        Number of files by their suffix, in lower case, empty where they have none: those that hold pictures, by their
        suffix or their first bytes, and all others.
    examples : tuple of str
        The first of the pictures.
    folders : tuple of str
        The first folders that hold no input, nor does one below them.
    num_folders : int
        All such folders.
    """

    images: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    num_folders: int = 0

    @property
    def count(self) -> int:
        """Number of all files."""
        return sum(self.images.values()) + sum(self.others.values())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> IgnoredFiles:
        """Rebuild it from `to_json`."""
        return cls(**{**value, "examples": tuple(value["examples"]), "folders": tuple(value["folders"])})

    @classmethod
    def joined(cls, several: Iterable[IgnoredFiles]) -> IgnoredFiles:
        """Return what several hold together."""
        total, num_folders = IgnoredCounter(), 0
        for ignored in several:
            total.update(ignored)
            num_folders += ignored.num_folders
        return replace(total.result(), num_folders=num_folders)

    def warnings(self) -> list[ReportWarning]:
        """Return the warning of what somebody will miss, if there is anything."""
        if not self.images and not self.folders:
            return []
        count, findings = sum(self.images.values()), list[str]()
        if count:
            findings.append(
                f"{counted(count, 'file')} left out by name: {by_suffix(self.images)}{_advice(self.images)}"
            )
        if self.folders:
            named = ", ".join(repr(shortened(folder)) for folder in self.folders[:MAX_EXAMPLES])
            more = ", ..." if self.num_folders > MAX_EXAMPLES else ""
            findings.append(
                f"class folder {named} has no image"
                if self.num_folders == 1
                else f"{self.num_folders} class folders have no image: {named}{more}"
            )
        text = "; ".join(findings)
        return [ReportWarning(kind="ignored_files", count=count or self.num_folders, text=text, examples=self.examples)]


@dataclass(slots=True)
class IgnoredCounter:
    """Counts files while a folder is listed.

    Attributes
    ----------
    images, others, examples
        As of `IgnoredFiles`; files and folders whose names begin with a dot are ``others[HIDDEN]``.
    folders : list of str
        All folders without an input.
    """

    images: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    _num_opened: int = 0

    def add(self, name: str, path: str, file: str) -> None:
        """Take a file.

        Parameters
        ----------
        name, path : str
            Of the file, and where it lies relative to the source.
        file : str
            What opens it.
        """
        suffix = Path(name).suffix.lower()
        if not self._is_image(suffix, file):
            self.others[suffix] += 1
            return
        self.images[suffix] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(path)

    def update(self, other: IgnoredCounter | IgnoredFiles) -> None:
        """Take all that another one has counted."""
        self.images.update(other.images)
        self.others.update(other.others)
        self.examples = [*self.examples, *other.examples][:MAX_EXAMPLES]
        self.folders += other.folders

    def result(self) -> IgnoredFiles:
        """Return what was counted: of suffixes the most frequent, as every file may have its own."""
        most_frequent = []
        for counts in (self.images, self.others):
            # `+` leaves out what was counted 0 times, as hidden files are where there are none.
            kept = dict(sorted((+counts).items(), key=lambda item: (-item[1], item[0]))[:_MOST_SUFFIXES])
            rest = counts.total() - sum(kept.values())
            most_frequent.append({**kept, **({"of other suffixes": rest} if rest else {})})
        images, others = most_frequent
        return IgnoredFiles(
            images=images,
            others=others,
            examples=tuple(self.examples),
            folders=tuple(sorted(self.folders)[:_MOST_FOLDERS]),
            num_folders=len(self.folders),
        )

    def _is_image(self, suffix: str, path: str) -> bool:
        if suffix in HEIC_SUFFIXES or suffix in _RAW or suffix in _OTHER_IMAGES:
            return True
        # Most files are told by their names; opening each would make a scan as slow as reading.
        if suffix in _NO_IMAGES or self._num_opened >= _MOST_OPENED:
            return False
        self._num_opened += 1
        return begins_like_an_image(path)


def begins_like_an_image(path: str) -> bool:
    """Tell by its first bytes whether a file holds a picture."""
    try:
        with open_regular(path) as (file, _):
            head = file.read(132)
    except OSError:
        return False
    return (
        # As the formats begin; `imghdr` is gone from Python, and Pillow would decode.
        head.startswith(_BEGINNINGS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or head[128:] == b"DICM"
    )


def by_suffix(counts: Mapping[str, int]) -> str:
    """Write counts in words, the most frequent first."""
    words = {"": "without suffix", HIDDEN: "hidden"}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {words.get(suffix, shortened(suffix, 20))}" for suffix, count in ordered)


def _advice(images: Mapping[str, int]) -> str:
    """Say how pictures of some suffixes can be read."""
    advice = []
    if HEIC_SUFFIXES & images.keys() and find_spec("pillow_heif") is None:
        advice.append(f"HEIC is read with: {install_command('heif')}")
    # Cameras and downloads leave pictures without their suffix.
    if images.keys() - HEIC_SUFFIXES - _RAW - _OTHER_IMAGES:
        advice.append("files with another suffix or none hold pictures; give them that of their format, e.g. .jpg")
    if images.keys() & (_RAW | _OTHER_IMAGES):
        advice.append("other formats must be converted, e.g. to PNG")
    return f" ({'; '.join(advice)})" if advice else ""
