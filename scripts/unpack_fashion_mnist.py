"""Unpacks the IDX files of Fashion-MNIST into folders of PNG images, ``train/<class>/`` and ``test/<class>/``.

    python scripts/unpack_fashion_mnist.py /usr/share/dataset-fashion-mnist fashion/

Debian's package `dataset-fashion-mnist` brings the files; so do the authors (github.com/zalandoresearch/fashion-mnist).
The 70,000 images of 28x28 pixels are what `benchmark.py heads` is told to measure on.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
PARTS = {"train": "train", "test": "t10k"}


def main() -> None:
    """Unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idx", type=Path, metavar="FOLDER", help="with train-images-idx3-ubyte and the others")
    parser.add_argument("out", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    for part, prefix in PARTS.items():
        images = read_idx(args.idx / f"{prefix}-images-idx3-ubyte", header=16).reshape(-1, 28, 28)
        labels = read_idx(args.idx / f"{prefix}-labels-idx1-ubyte", header=8)
        for name in CLASSES:
            (args.out / part / name).mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(args.out / part / CLASSES[label] / f"{number:05d}.png")
        print(f"{part}: {len(images)} images")


def read_idx(path: Path, *, header: int) -> np.ndarray:
    """Return the bytes after the header of a file, which may be compressed."""
    packed = path.with_name(path.name + ".gz")
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    return np.frombuffer(data, np.uint8)[header:]


if __name__ == "__main__":
    main()
