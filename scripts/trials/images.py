"""Mutated image files: none may hang or crash the decoder, and every one is either good or bad."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from typing import Any

import numpy as np

from trials.common import Options, Tally, for_each, problems_of

VARIANTS = ("jpeg baseline", "jpeg progressive", "png", "webp", "gif", "bmp", "tiff")
SECONDS_PER_IMAGE = 20.0
_PER_JOB = 50


def try_images(options: Options) -> list[Tally]:
    """Mutate valid files of every variant and decode them."""
    number = 280 if options.quick else 10_500
    numbers = np.arange(number)
    # Many images to a job: a job that dies is tried again image by image to find the one that killed it.
    jobs = [part.tolist() for part in np.array_split(numbers, max(number // _PER_JOB, 1))]
    tally = Tally("mutated images hung, crashed or were neither good nor bad")
    counts: Counter[str] = Counter()
    slowest = 0.0
    for job, result in zip(jobs, for_each(jobs, _decode_all, jobs=options.jobs, timeout=60), strict=True):
        single = [result] if "value" in result else for_each([[n] for n in job], _decode_all, jobs=1, timeout=60)
        for part in single:
            if "failed" in part:
                tally.add(problems_of(part), label="image")
                continue
            for outcome, seconds, label in part["value"]["outcomes"]:
                problems = [outcome] if outcome.startswith("!") else []
                problems += [f"took {seconds:.0f} s"] if seconds > SECONDS_PER_IMAGE else []
                tally.add(problems, label=label)
                counts[outcome] += 1
                slowest = max(slowest, seconds)
    good, bad = counts["good"], sum(counts.values()) - counts["good"]
    if good + bad != number:
        tally.violations.append(f"{good} good + {bad} bad are not {number}")
    tally.numbers = {**counts, "slowest_seconds": round(slowest, 3)}
    statuses = ", ".join(f"{status} {count}" for status, count in sorted(counts.items()) if status != "good")
    tally.notes.append(f"{good} good + {bad} bad ({statuses}) = {good + bad}; slowest {1000 * slowest:.0f} ms")
    return [tally]


def _decode_all(numbers: list[int]) -> dict[str, Any]:
    from featurecache.errors import InputError
    from featurecache.sources.decoding.images import load_image, pillow_defaults
    from featurecache.specs import PreprocessSpec

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff complains there about every damaged file
    spec = PreprocessSpec(resize=40, crop=32)
    outcomes = []
    with pillow_defaults():
        for number in numbers:
            variant = VARIANTS[number % len(VARIANTS)]
            data = mutate(_original(variant, number // len(VARIANTS) % 5), np.random.default_rng(number))
            started = time.perf_counter()
            try:
                pixels = load_image(data, spec)
                outcome = "good" if pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 else "!wrong shape"
            except InputError as error:
                outcome = error.status
            except Exception as error:
                outcome = f"!{type(error).__name__}: {error}"
            outcomes.append((outcome, time.perf_counter() - started, f"{variant}, mutation {number}"))
    return {"problems": [], "outcomes": outcomes}


def _original(variant: str, seed: int) -> bytes:
    """A valid file; the five seeds differ in size and mode."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5 + seed, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((64 + 9 * seed, 50 + 7 * seed), Image.Resampling.BICUBIC)
    kind = variant.split()[0]
    modes = {"jpeg": "RGB L CMYK RGB L", "png": "RGB RGBA L P LA", "webp": "RGB RGBA RGB RGBA RGB"}
    modes |= {"gif": "P L P L P", "bmp": "RGB L P RGB L", "tiff": "RGB L CMYK RGBA P"}
    image = image.convert(modes[kind].split()[seed])
    options: dict[str, Any] = {"jpeg": {"quality": 85, "progressive": "progressive" in variant}}.get(kind, {})
    if kind == "tiff":
        options = {"compression": (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_lzw")[seed]}
    if kind == "gif" and seed % 2:
        options = {"save_all": True, "append_images": [image.rotate(90)]}
    if kind in ("jpeg", "png", "webp") and seed == 3:
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a file in one of seven ways; half of the changes are near its beginning, where the structure is."""
    content = bytearray(data)

    def place() -> int:
        return int(rng.integers(min(len(content), 64) if rng.random() < 0.5 else len(content)))

    way = int(rng.integers(7))
    if way == 0:
        for _ in range(int(rng.integers(1, 9))):
            content[place()] ^= 1 << int(rng.integers(8))
    elif way == 1:
        del content[place() :]
    elif way == 2:
        start, count = place(), int(rng.integers(1, 33))
        content[start : start + count] = rng.bytes(count)
    elif way == 3:
        start = place()
        del content[start : start + int(rng.integers(1, 65))]
    elif way == 4:
        start, count = place(), int(rng.integers(1, 65))
        content[start:start] = content[start : start + count] * int(rng.integers(1, 9))
    elif way == 5:
        start, count = place(), int(rng.integers(1, 5))
        content[start : start + count] = bytes([int(rng.choice([0, 127, 128, 255]))]) * count
    else:
        first, second = sorted((place(), place()))
        content[first:second] = bytes(second - first)
    return bytes(content)
