"""What libtiff reports of a damaged file: it would print that on stderr, without the file's name.

Pillow leaves libtiff's own handler of errors in place. While images are decoded, ours stands there: it keeps the lines
of each thread, so that they become the reason of the file which that thread decodes. Where Pillow was built so that the
library's functions cannot be found (on Windows it holds them inside), the lines go to stderr as before. To redirect the
descriptor of stderr instead would mix the lines of all threads, and take those of all other code in the process.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)
_LINE_BYTES = 400
_MOST_LINES = 3
# void (*)(const char* module, const char* format, va_list); a va_list is handed on as a pointer.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


# Of each thread, as ``kept``: the file that it decodes is the one that libtiff reports of.
_lines = threading.local()


def take_lines() -> str:
    """Return what libtiff reported in this thread since it was asked for before."""
    return "; ".join(vars(_lines).pop("kept", ()))


def _keep(module: bytes | None, format: bytes | None, arguments: int | None) -> None:
    kept: list[str] = vars(_lines).setdefault("kept", [])
    # A damaged file may report a line for each of its strips.
    if len(kept) >= _MOST_LINES or format is None:
        return
    buffer = ctypes.create_string_buffer(_LINE_BYTES)
    ctypes.CDLL(None).vsnprintf(buffer, _LINE_BYTES, format, ctypes.c_void_p(arguments))
    name = f"{module.decode(errors='replace')}: " if module and module != b"tempfile.tif" else ""
    kept.append(f"libtiff: {name}{buffer.value.decode(errors='replace')}")


_KEEP = _HANDLER(_keep)


@contextmanager
def lines_kept() -> Iterator[None]:
    """Keep errors by thread, and drop warnings as Pillow does; afterwards the handlers of before are there again."""
    library = _find_library()
    if library is None:
        yield
        return
    setters = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler)
    before = [
        setter(handler) for setter, handler in zip(setters, (ctypes.cast(_KEEP, ctypes.c_void_p), None), strict=True)
    ]
    try:
        yield
    finally:
        for setter, handler in zip(setters, before, strict=True):
            setter(handler)


def _find_library() -> Any:
    """Return the libtiff that Pillow uses, wherever it lies: a library's functions are found through who links it."""
    try:
        from PIL import _imaging

        library = ctypes.CDLL(_imaging.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        ctypes.CDLL(None).vsnprintf  # noqa: B018
    except (ImportError, OSError, AttributeError, TypeError):
        _log.debug("libtiff of Pillow is out of reach; what it says goes to stderr")
        return None
    return library
