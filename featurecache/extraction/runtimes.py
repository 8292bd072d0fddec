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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agreed:
    """What the first writer of the features has decided for all; None where that is open."""

    runtime: str | None = None
    batch_size: int | None = None
    lengths: tuple[int, ...] | None = None
    norms_folded: bool | None = None


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
    lengths
        Of texts, the padded lengths that are asked for; by default those of ``provenance``.
    opened
        Runtimes by the taps that each computes.
    """

    backbone: Backbone
    taps: Mapping[str, Tap]
    settings: ExtractionSettings
    provenance: Provenance | None
    lengths: tuple[int, ...] | None = None
    opened: dict[tuple[str, ...], Runtime] = field(default_factory=dict)

    def of(self, taps: tuple[str, ...]) -> Runtime:
        """Return the runtime for some taps, the same one each time."""
        if taps not in self.opened:
            agreed = self._agreed()
            self.opened[taps] = open_runtime(
                self.backbone,
                [self.taps[tap] for tap in taps],
                runtime=self.settings.runtime,
                device=self.settings.device,
                batch_size=self.settings.batch_size or agreed.batch_size,
                remembered=agreed.runtime,
                lengths=agreed.lengths,
                norms_folded=agreed.norms_folded,
            )
        return self.opened[taps]

    def agree(self, provenance: Provenance | None) -> None:
        """Close what was opened before a writer who was first had made another choice known."""
        self.provenance = provenance
        agreed = self._agreed()
        for taps, runtime in list(self.opened.items()):
            if (
                agreed.runtime not in (None, runtime.name)
                or agreed.batch_size not in (None, runtime.batch_size)
                or agreed.lengths not in (None, runtime.lengths)
                or (runtime.name == "torch" and agreed.norms_folded not in (None, runtime.norms_folded))
            ):
                runtime.close()
                del self.opened[taps]

    def _agreed(self) -> _Agreed:
        """Return what earlier features decide where the settings leave it open."""
        if (before := self.provenance) is None:
            return _Agreed(lengths=self.lengths)
        # What suits one device is of no use to another.
        same_device = drift.is_same_device(before, str(checked_device(self.settings.device)))
        return _Agreed(
            runtime=before.runtime if self.settings.runtime == "auto" else None,
            batch_size=before.batch_size if self.settings.batch_size is None and same_device else None,
            lengths=self.lengths or before.lengths,
            # OpenVINO's records say nothing of what torch would do.
            norms_folded=before.norms_folded if before.runtime == "torch" else None,
        )
