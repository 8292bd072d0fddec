"""Copy the demo images (pip package conformal-clip-data, MIT licence) to a folder with one folder for each class."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Copy what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder
    import conformal_clip_data

    source = Path(conformal_clip_data.textile_simulated_root())
    copied = 0
    for image in sorted(source.rglob("*.jpg")):
        place = target / image.relative_to(source)
        if not place.exists() or place.stat().st_size != image.stat().st_size:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(image, place)
            copied += 1
    print(f"{target}: {copied} images copied, {len(list(target.rglob('*.jpg')))} in all", file=sys.stderr)


if __name__ == "__main__":
    main()
