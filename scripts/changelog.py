"""Print the notes in ``.github/changes`` as one section of a changelog.

python scripts/changelog.py 0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGES = Path(__file__).resolve().parent.parent / ".github" / "changes"
KINDS = ("added", "changed", "fixed", "removed")
_NAME = re.compile(rf"(\d+)\.({'|'.join(KINDS)})\.md")


def section(version: str, folder: Path = CHANGES) -> str:
    """Return the section of a version: notes by kind, the oldest first.

    Raises
    ------
    ValueError
        A file that is not named ``NUMBER.KIND.md``, or an empty one.
    """
    notes: dict[str, list[tuple[int, str]]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.glob("*.md")):
        if path.name == "README.md":
            continue
        found, text = _NAME.fullmatch(path.name), " ".join(path.read_text().split())
        if found is None or not text:
            raise ValueError(f"{path}: call it NUMBER.KIND.md, KIND one of {', '.join(KINDS)}, and write a sentence")
        notes[found[2]].append((int(found[1]), text))
    lines = [f"## {version}", ""]
    for kind, texts in notes.items():
        if texts:
            lines += [f"### {kind.capitalize()}", "", *[f"- {text} (#{number})" for number, text in sorted(texts)], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(section(sys.argv[1]))
