"""What a file is, told from its first bytes: a suffix is only a name."""

from __future__ import annotations

import codecs
import copy
import json
import mmap
import re
import zipfile
import zlib
from pathlib import Path

from featurecache.hashing import digest_file

SAFETENSORS, CHECKPOINT = "safetensors", "a checkpoint of torch.save"
# Enough for the header of a tar archive (512 bytes) and for the line that tells what a text is.
_HEAD_BYTES = 4096
_BLOCK = 1 << 20
# Records of a file may become so many times as large as the file, and so many bytes whatever its size.
_MOST_INFLATED, _INFLATED_ANYWAY = 4, 1 << 20
_FORMATS_OF_WEIGHTS = "safetensors, or what torch.save makes of a state_dict"
# How torch.save began before 1.6, and still does on request: a pickled number that only it writes.
_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_UNPACK = "unpack it, and name the file inside"
_SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them; bring the weights of a PyTorch network"),
    (b"GGUF", "a GGUF file of llama.cpp, whose weights are quantised; bring the original weights"),
    (b"\x1f\x8b", f"compressed by gzip; {_UNPACK}"),
    (b"BZh", f"compressed by bzip2; {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"compressed by xz; {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed by zstd; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (b"Rar!", f"a RAR archive; {_UNPACK}"),
    (b"\x93NUMPY", "a NumPy array, not the tensors of a network by name"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)


# Digits alone are a date or a step (vit-20240131.pth), not a digest.
_DIGEST_IN_NAME = re.compile(r"-(?=[0-9a-f]*[a-f])([0-9a-f]{8,64})(?:\.[a-z]+)+$")


class NotWeightsError(ValueError):
    """A file that holds no weights; the message says what it is, and what to do."""


def format_of(path: Path) -> str:
    """Return ``SAFETENSORS`` or ``CHECKPOINT``, whatever the file's suffix says.

    Raises
    ------
    NotWeightsError
        It is neither. The message is to follow the name of the file.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    size = path.stat().st_size
    if not head:
        raise NotWeightsError("is empty (0 bytes); download it again")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _format_of_zip(path)
    if head[0] == 0x80 and head[2:14] == _LEGACY:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_pickle(data)
        return CHECKPOINT
    if _is_safetensors(head, size):
        return SAFETENSORS
    raise NotWeightsError(_text(head, size) or _binary(head, size))


def differing_digest(path: Path) -> tuple[str, str] | None:
    """Return the digest in a file's name, and as much of its SHA-256; None where they agree or the name has none."""
    if (found := _DIGEST_IN_NAME.search(path.name)) is None:
        return None
    actual = digest_file(path)[: len(found[1])]
    return None if actual == found[1] else (found[1], actual)


def damaged(size: int) -> str:
    """Return what to say of a file that ends too early, or whose bytes are wrong."""
    return f"is cut off or damaged ({size:,} bytes); download it again"


def _format_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # The list of what is inside stands at the end of a zip archive.
        raise NotWeightsError(damaged(path.stat().st_size)) from None
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        raise NotWeightsError(
            "is a TorchScript archive, a program rather than weights; save its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if "data.pkl" in inside:
        _check_zip(path)
        return CHECKPOINT
    if any(name.endswith("models/model.json") for name in names):
        raise NotWeightsError("is a program of torch.export; name it as a network, --backbone file:PROGRAM.pt2")
    if names and all(name.endswith(".npy") for name in names):
        raise NotWeightsError(
            "is an archive of NumPy arrays (.npz); save them as safetensors, under the network's names"
        )
    raise NotWeightsError(
        f"is a zip archive, and no checkpoint (it holds {', '.join(names[:3]) or 'nothing'}); {_UNPACK}"
    )


def _check_zip(path: Path) -> None:
    """Refuse bytes that changed since they were written: torch reads them without a word. 1 GB takes about a second."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            for entry in archive.infolist():
                if entry.filename.endswith("/data.pkl"):
                    _check_pickle(_read_unchecked(archive, entry))
            for entry in archive.infolist():
                if entry.CRC:  # torch can be told to leave these out
                    with archive.open(entry) as file:
                        while file.read(_BLOCK):
                            pass
    except NotWeightsError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, zlib.error):
        raise NotWeightsError(damaged(path.stat().st_size)) from None


def _read_unchecked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read a record whether or not its checksum was left out."""
    entry = copy.copy(entry)
    del entry.CRC
    with archive.open(entry) as file:
        return file.read()


def _check_pickle(data: bytes | mmap.mmap) -> None:
    """Refuse the one thing that torch calls where it unpickles and that takes as much memory as a number says."""
    if data.find(b"bytearray") >= 0:
        raise NotWeightsError(
            "holds Python objects that are not tensors (bytearray), and those are not unpickled; save the network's "
            "state_dict alone, where the code that wrote this is at hand"
        )


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse records that would become far larger than the file, before a byte of them is inflated.

    torch.save compresses nothing; somebody else may have packed the file again, which makes weights 0.9 times as large.
    """
    entries = archive.infolist()
    if sum(entry.compress_size for entry in entries) > size:  # some overlap, or promise bytes that are not there
        raise NotWeightsError(damaged(size))
    inflated = sum(entry.file_size for entry in entries)
    if inflated > _MOST_INFLATED * size + _INFLATED_ANYWAY:
        raise NotWeightsError(
            f"is compressed, and its {size:,} bytes would become {inflated:,}, as no weights do; save it again with "
            "torch.save"
        )


def _is_safetensors(head: bytes, size: int) -> bool:
    """Tell a length of 8 bytes and the beginning of a JSON object; raise where the file is too short for it."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > 1 << 40:
        return False
    if 8 + length > size:
        raise NotWeightsError(damaged(size))
    return True


def _text(head: bytes, size: int) -> str | None:
    """Return what a text is; ``None`` where the bytes are none."""
    try:  # the last character may be cut in two
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=size <= len(head)).lstrip()
    except UnicodeDecodeError:
        return None
    if not all(char.isprintable() or char in "\t\n\r" for char in text):
        return None
    start = text[:200].lower()
    if start.startswith("version https://git-lfs"):
        return "is a Git LFS pointer, which stands in for the file; fetch that: git lfs pull"
    if "/annex/objects/" in start:
        return "is a git-annex pointer, which stands in for the file; fetch that: git annex get"
    if start.startswith(("<!doctype html", "<html")):
        return "is a web page, perhaps one that asks to log in; download the file itself"
    if start.startswith("<"):
        return "is an XML text, perhaps the error message of a server; download the file itself"
    if '"weight_map"' in text:
        return "is the index of weights in several files; merge those into one safetensors file"
    if start.startswith(("{", "[")) and _is_json(text, size):
        return f"is a JSON text, not a checkpoint: {' '.join(text.split())[:80]}"
    return "is a text file, not a checkpoint"


def _is_json(text: str, size: int) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return size > _HEAD_BYTES
    return True


def _binary(head: bytes, size: int) -> str:
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            return f"is {what}"
    if not any(head):
        return f"begins with {len(head):,} zeros, as a download that was broken off does; download it again"
    if head[257:262] == b"ustar":
        if b"sys_info\0" in head or b"storages\0" in head:
            return (
                "is a checkpoint as PyTorch wrote them before 2017 (a tar archive), which is read only by unpickling; "
                "save its state_dict again"
            )
        return f"is a tar archive; {_UNPACK}"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model; bring the weights of a PyTorch network"
    if _is_onnx(head):
        return "is an ONNX model, a program rather than weights; bring the weights that it was exported from"
    if head[:3] == b"\x08\x01\x12":
        return "is a TensorFlow SavedModel; bring the weights of a PyTorch network"
    if head[0] == 0x80 and head[1] in range(2, 6):
        # What torch.save writes was recognised before, unless it is cut off within its first bytes.
        return (
            "is a pickle that torch.save did not write, and those are not unpickled; save the network's state_dict "
            "with torch.save or as safetensors"
            if size > len(_LEGACY) + 2
            else damaged(size)
        )
    return f"is not a checkpoint: it begins with {head[:8].hex(' ')}; expected {_FORMATS_OF_WEIGHTS}"


def _is_onnx(head: bytes) -> bool:
    """Tell protobuf's fields of an ONNX model: its version, then the name of the producer or the like."""
    if head[0] != 0x08 or not 1 <= head[1] <= 32 or len(head) < 5 or head[2] not in (0x12, 0x1A, 0x22, 0x3A, 0x42):
        return False
    name = head[4 : 4 + head[3]]
    return head[2] in (0x3A, 0x42) or (0 < head[3] < 128 and name.isascii() and name.decode().isprintable())
