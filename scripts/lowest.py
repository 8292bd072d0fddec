"""Print the lowest versions that ``pyproject.toml`` allows, as constraints for pip.

python scripts/lowest.py [EXTRA ...]
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9][0-9A-Za-z.]*)")


def lowest(project: Path, extras: list[str]) -> list[str]:
    """Return ``name==version`` for each requirement that has a floor.

    Parameters
    ----------
    project : Path
        Its ``pyproject.toml``.
    extras : list of str
        Which of its extras count too.
    """
    about = tomllib.loads(project.read_text())["project"]
    requirements = [
        *about["dependencies"],
        *(line for extra in extras for line in about["optional-dependencies"][extra]),
    ]
    found = [_REQUIREMENT.match(line) for line in requirements]
    return sorted({f"{each[1]}=={each[2]}" for each in found if each is not None})


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).resolve().parent.parent / "pyproject.toml", sys.argv[1:])))
