"""The runtimes of one worker: for each combination of taps one, all as the first writer of the features chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap
from featurecache.backbones.torch_runtime import checked_device
from featurecache.extraction import drift
from featurecache.specs import ExtractionSettings
from featurecache.store.schemas import Provenance


@dataclass
class Runtimes:
    """Opens runtimes when they are first needed.

    Attributes
    ----------
    backbone, taps
        What is computed.
    settings
        What the user decided; the rest follows from ``provenance``.
    provenance
        Of the features that are there, or of the writer that began: a resumed run must not mix runtimes or sizes of
        batches in one array.
    opened
        Runtimes by the taps that each computes.
    """

    backbone: Backbone
    taps: Mapping[str, Tap]
    settings: ExtractionSettings
    provenance: Provenance | None
    opened: dict[tuple[str, ...], Runtime] = field(default_factory=dict)

    def of(self, taps: tuple[str, ...]) -> Runtime:
        """Return the runtime for some taps, the same one each time."""
        if taps not in self.opened:
            name, batch_size, norms_folded = self._agreed()
            self.opened[taps] = open_runtime(
                self.backbone,
                [self.taps[tap] for tap in taps],
                runtime=self.settings.runtime,
                device=self.settings.device,
                batch_size=self.settings.batch_size or batch_size,
                remembered=name,
                norms_folded=norms_folded,
            )
        return self.opened[taps]

    def agree(self, provenance: Provenance | None) -> None:
        """Close what was opened before a writer who was first had made another choice known."""
        self.provenance = provenance
        name, batch_size, norms_folded = self._agreed()
        for taps, runtime in list(self.opened.items()):
            of_torch = runtime.name == "torch" and norms_folded not in (None, runtime.norms_folded)
            if name not in (None, runtime.name) or batch_size not in (None, runtime.batch_size) or of_torch:
                runtime.close()
                del self.opened[taps]

    def _agreed(self) -> tuple[str | None, int | None, bool | None]:
        """Return what earlier features decide where the settings leave it open.

        That is the runtime, the batch size, and whether torch folds batch norms.
        """
        if (before := self.provenance) is None:
            return None, None, None
        name = before.runtime if self.settings.runtime == "auto" else None
        # What suits one device is of no use to another.
        same = drift.is_same_device(before, str(checked_device(self.settings.device)))
        batch_size = before.batch_size if self.settings.batch_size is None and same else None
        # OpenVINO's records say nothing of what torch would do.
        return name, batch_size, before.norms_folded if before.runtime == "torch" else None
