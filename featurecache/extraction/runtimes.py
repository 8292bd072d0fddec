"""The runtimes of one worker: for each combination of taps one, all as the first writer of the features chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap
from featurecache.backbones.torch_runtime import checked_device
from featurecache.specs import ExtractionSettings


@dataclass
class Runtimes:
    """Opens runtimes when they are first needed.

    Attributes
    ----------
    backbone, taps
        What is computed.
    settings
        What the user decided; the rest follows from ``made_with``.
    made_with
        Provenance of the features that are there, or of the writer that began: a resumed run must not mix runtimes or
        sizes of batches in one array.
    """

    backbone: Backbone
    taps: Mapping[str, Tap]
    settings: ExtractionSettings
    made_with: Mapping[str, Any] | None
    _open: dict[tuple[str, ...], Runtime] = field(default_factory=dict)

    def of(self, taps: tuple[str, ...]) -> Runtime:
        """Return the runtime for some taps, the same one each time."""
        if taps not in self._open:
            agreed = self._agreed()
            self._open[taps] = open_runtime(
                self.backbone,
                [self.taps[tap] for tap in taps],
                runtime=self.settings.runtime,
                device=self.settings.device,
                batch_size=self.settings.batch_size or agreed.get("batch_size"),
                remembered=agreed.get("runtime"),
            )
        return self._open[taps]

    def agree(self, made_with: Mapping[str, Any] | None) -> None:
        """Close what was opened before a writer who was first had made another choice known."""
        self.made_with = made_with
        for taps, runtime in list(self._open.items()):
            mine = {"runtime": runtime.name, "batch_size": runtime.batch_size}
            if any(mine[name] != value for name, value in self._agreed().items()):
                runtime.close()
                del self._open[taps]

    def close(self) -> None:
        """Release them all."""
        for runtime in self._open.values():
            runtime.close()

    @property
    def name(self) -> str | None:
        """Name of the runtime in use, once there is one."""
        return next((runtime.name for runtime in self._open.values()), None)

    @property
    def trial(self) -> Mapping[str, float]:
        """Inputs per second of each runtime that was tried."""
        return next((runtime.trial for runtime in self._open.values() if runtime.trial), {})

    def _agreed(self) -> dict[str, Any]:
        """Return what the earlier features decide and the settings leave open."""
        made_with, agreed = self.made_with or {}, {}
        if self.settings.runtime == "auto" and "runtime" in made_with:
            agreed["runtime"] = made_with["runtime"]
        # What suits one device is of no use to another.
        if self.settings.batch_size is None and made_with.get("device") == str(checked_device(self.settings.device)):
            agreed["batch_size"] = made_with["batch_size"]
        return agreed
