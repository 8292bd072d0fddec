"""What a long run reports while it goes on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to a run; the command line draws it."""

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of ``total`` steps."""

    def advance(self, count: int, *, bad: int = 0) -> None:
        """Report finished steps, and how many of them were bad inputs."""

    def say(self, text: str) -> None:
        """Tell what the run is waiting for, or has decided, in a few words."""


class Silent:
    """Listens and says nothing."""

    def start(self, phase: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int, *, bad: int = 0) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""
