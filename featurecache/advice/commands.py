"""The commands that advice names: each can be typed as it stands, but for words in capitals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurecache.advice.arms import PIXELS
from featurecache.backbones.providers.module_in_memory import PREFIX as MODULE_PREFIX
from featurecache.errors import command_line
from featurecache.store.feature_sets import FeatureSet, choose, prefer_wider
from featurecache.store.store import FeatureStore

_MINUTES = 10


class Commands:
    """Commands about one task of a cache.

    Parameters
    ----------
    store : FeatureStore
    task : str
    source : path, optional
        Where the samples come from; the word ``SOURCE`` when left out.
    source_options : sequence of str
        With which it is opened: the columns of a table.

    Attributes
    ----------
    label : str
        Gives samples other labels or splits.
    """

    def __init__(
        self, store: FeatureStore, task: str, source: str | Path | None = None, source_options: Sequence[str] = ()
    ) -> None:
        self._store, self._task, self._source_options = store, task, source_options
        self._source = "SOURCE" if source is None else str(source)
        self.label = command_line("task", "add", store.path, task, "LABELS.csv", "--replace")

    def keep_copies_together(self) -> str:
        """Return the command that makes the task again with near-copies in one split and one fold."""
        origin = self._store.task(self._task).about.get("origin")
        labels = ["--from-folders"] if origin == "folders" else ["LABELS.csv"]
        options = (*labels, "--group-near-copies", "--replace")
        return command_line("task", "add", self._store.path, self._task, *options)

    def without_transfer(self, feature_set: FeatureSet) -> dict[str, str]:
        """Return the commands that make what a pretrained network is compared with, by role.

        Parameters
        ----------
        feature_set : FeatureSet
            Of the pretrained network.
        """
        if feature_set.identity.preprocess.modality != "image":
            is_known = "--text-column" in self._source_options
            return {"words": self._extract("words", *([] if is_known else ["--text-column", "COLUMN"]))}
        return {
            "pixels": self._extract(f"pixels:{PIXELS}"),
            "colours": self._extract("colours"),
            "untrained": self._extract(_name_of(feature_set), "--init", "random", "--tap", feature_set.tap),
        }

    def extract(self, feature_set: FeatureSet, tap: str, *options: str) -> str:
        """Return the command that caches a tap of the network of a feature set; ``blocks``, all of its blocks.

        Parameters
        ----------
        feature_set : FeatureSet
        tap : str
        *options : str
            Further ones, such as those for views.
        """
        return self._extract(*self._network(feature_set), "--tap", tap, *options)

    def train(self, feature_set: FeatureSet, *, target_domain: str | None = None) -> str:
        """Return the command that trains heads on one feature set and no other, adapted to a domain if one is named.

        Parameters
        ----------
        feature_set : FeatureSet
        target_domain : str, optional
        """
        words = ["--task", self._task, "--tap", feature_set.tap, *self._choice(feature_set)]
        if target_domain is not None:
            # Adapting is asked for to predict new samples of the target: the head has to be kept for that.
            words += ["--adapt", "auto", "--target-domain", target_domain, "--save", "adapted"]
        return command_line("train", self._store.path, *words)

    def deeper(self, feature_set: FeatureSet) -> str:
        """Return the command that trains deeper layers, or the one that says where a network can be cut."""
        mine = [found for found in self._store.feature_sets() if found.fingerprint == feature_set.fingerprint]
        # Layers are trained on cached activations; where there are none yet, the first step is to see where a network
        # can be cut.
        if all(found.is_pooled for found in mine):
            return command_line("inspect", *self._network(feature_set), "--tails")
        options = ("--fingerprint", feature_set.fingerprint[:12], "--views", "0")
        depths = ("--depths", "auto", "--minutes", str(_MINUTES))
        return command_line("train", self._store.path, "--task", self._task, *options, *depths)

    def _choice(self, feature_set: FeatureSet) -> list[str]:
        """Return as few options as tell a feature set from all others with its tap."""
        sets, backbone = self._store.feature_sets(), feature_set.identity.backbone
        fingerprint = feature_set.fingerprint[:12]
        choices: tuple[dict[str, str], ...] = ({}, {"backbone": backbone}, {"fingerprint": fingerprint})
        # One of several number types is chosen as `train` does it, so that the command means this set.
        for names in choices:
            found = prefer_wider(choose(sets, {"tap": feature_set.tap, **names}, 0))
            if [other.key for other in found] == [feature_set.key]:
                return [word for name, value in names.items() for word in (f"--{name}", value)]
        return ["--fingerprint", fingerprint, "--dtype", feature_set.dtype]

    def _network(self, feature_set: FeatureSet) -> list[str]:
        """Return the name of a network, and that its weights are in a file that has to be named again."""
        weights = ["--weights", "FILE"] if feature_set.about.weights_source.startswith("file ") else []
        return [_name_of(feature_set), *weights]

    def _extract(self, backbone: str, *options: str) -> str:
        words = [self._source, *self._source_options, "--cache", self._store.path, "--backbone", backbone]
        return command_line("extract", *words, *options)


def _name_of(feature_set: FeatureSet) -> str:
    """Return what to call a network on a command line."""
    name = feature_set.identity.backbone
    # One in the memory of a program is out of a command's reach, but for a function that makes it.
    return "python:MODULE:FACTORY" if name.startswith(MODULE_PREFIX) else name
