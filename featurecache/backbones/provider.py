"""The seam between the registry and what networks come from. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from featurecache.errors import BackboneError, ReportWarning
from featurecache.hashing import digest_json
from featurecache.specs import AnyPreprocess

if TYPE_CHECKING:
    from torch import nn

    from featurecache.backbones.weights.checkpoints import Checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierDefault:
    """What an earlier release made of the same request, where a default has changed since.

    A cache that holds features made so is continued with them, and a warning names the default of today.

    Attributes
    ----------
    kind : str
        Of the warning: ``default_tap`` or ``preprocess``.
    now : str
        The default of today, for the warning: ``the default tap is the input of 'head' now, not its output``.
    preprocess : PreprocessSpec or TextPreprocessSpec, optional
        The preprocess of then; None where it is that of today.
    classifiers : tuple of str, optional
        The output layers that were removed then, an empty tuple for none; None where they are those of today.
    default_tap : str, optional
        The tap that ``default`` stood for then, ``node:pooling``; None where the name means the same today.
    """

    kind: str
    now: str
    preprocess: AnyPreprocess | None = None
    classifiers: tuple[str, ...] | None = None
    default_tap: str | None = None


# timm's word for it.
PRE_LOGITS = "pre_logits"
"""The input of the removed output layer, or the network's output where none is removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DefaultTap:
    """What ``default`` stands for, and how certain that is.

    Attributes
    ----------
    tap : str, optional
        ``node`` or ``node:pooling``; None where two choices are as good: then a tap has to be named.
    doubt : str
        Why it is not certain, as the rest of a sentence about the network; empty where it is.
    candidates : tuple of (str, int)
        Taps among which to choose, with the number of features of each.
    """

    tap: str | None = PRE_LOGITS
    doubt: str = ""
    candidates: tuple[tuple[str, int], ...] = ()


CERTAIN = DefaultTap()
"""What goes into the output layer."""


class PreprocessRefusedError(BackboneError):
    """The preprocess that the weights want cannot be had; says what earlier releases took for it."""

    def __init__(self, refusal: BackboneError, earlier: tuple[EarlierDefault, ...]) -> None:
        super().__init__(str(refusal))
        self.earlier = earlier


@dataclass(kw_only=True)
class Provided:
    """A network as its provider knows it, output layer still in place."""

    module: nn.Module
    preprocess: AnyPreprocess
    classifiers: tuple[str, ...] | None = ()
    """Paths of the output layers; the input of the first is the backbone's features, unless `join` is given. ``None``:
    not known, to be found in the forward pass."""
    default: DefaultTap = CERTAIN
    join: Callable[[], object] | None = None
    """Where each output layer sees a part of the features: removes them all, so that the network puts out the whole."""
    num_prefix_tokens: int = 0
    has_class_token: bool = True
    """The first of the prefix tokens is a class token, not a register."""
    tokenizer: str | None = None
    """Of texts, the tokenizer's definition; its digest stands in the preprocess."""
    token_pooling: str | None = None
    """Pooling of tokens that the weights were trained with, where that is known."""
    license: str | None = None
    weights_source: str = "none"
    """Where the provider's own weights came from."""
    own_file: Path | None = None
    """The file of the provider's own weights, where it is still to be loaded as any other."""
    rename_key: Callable[[str], str] | None = None
    """How parameter names of older weights files read today; ``None``: as they are."""
    load_file: Callable[[Checkpoint], nn.Module] | None = None
    """Loads a weights file by the library's own rules, because its names are not the network's; returns the network."""
    notes: tuple[str, ...] = ()
    warnings: tuple[ReportWarning, ...] = ()
    """What is doubtful about the weights or the preprocess."""
    earlier: tuple[EarlierDefault, ...] = ()
    """What earlier releases made of the same name, the latest first, for caches that they began."""
    refusal: BackboneError | None = None
    """Why ``preprocess`` is not what the weights want, which cannot be had; only who asks for that of `earlier`, or
    names every setting, gets the network."""
    identity_name: str | None = None
    """The name that counts for the fingerprint, where the one asked for holds a path of this machine."""
    architecture: str | None = None
    """Digest of the file that the network was read from, where its modules do not tell networks apart."""


def package_files(package: str, pattern: str) -> list[Path]:
    """Return the files of an installed package that match a glob, without importing it; none where it is absent."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return [file for folder in folders for file in sorted(Path(folder).glob(pattern))]


class Provider(Protocol):
    """Builds networks by name. Who subclasses it writes `build`, and what else is not as here.

    Attributes
    ----------
    packages : tuple of str
        Distributions whose versions may change the features.
    """

    packages: tuple[str, ...] = ()

    def list_names(self) -> list[str]:
        """Return every full backbone name, prefix included; empty where they are unknown, or the package is absent."""
        return []

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build the network.

        Parameters
        ----------
        name
            Without the prefix.
        pretrained
            Load the provider's own weights. Otherwise the caller loads the file ``weights``; or, if there is none, the
            weights stay as the constructors draw them, and the caller has set the seed.
        weights
            A file of weights, whose name may tell which preprocess belongs to it.
        keep_classifier
            The output layer stays, so its weights are needed too.

        Raises
        ------
        UnknownNameError
            There is no such network.
        WeightsError
            Its weights cannot be had here.
        """

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the provider's own weights file without importing torch; ``None`` if it cannot be located."""
        return None

    def reproducible(self, name: str) -> bool:
        """Tell whether name, versions and weights file say everything about the network."""
        # Code can change without its name changing: who knows better says so.
        return False


class PinnedProvider(Provider):
    """A provider of networks about which name, versions of packages and weights file say everything.

    Attributes
    ----------
    names : tuple of str
        Full names to list, for a provider of few.
    """

    # Not asked of the packages: where one is absent, its network is listed, so that the error can name the extra.
    names: tuple[str, ...] = ()

    def list_names(self) -> list[str]:
        """Return every full backbone name, prefix included, whether or not it can be built here."""
        return list(self.names)

    def reproducible(self, name: str) -> bool:
        """Tell that name, versions and weights file say everything about the network."""
        return True


class WeightlessProvider(PinnedProvider):
    """Builds networks that compute their features by a rule.

    Attributes
    ----------
    kind : str
        Name of the rule.
    settings : mapping
        Numbers in it that the features depend on.
    """

    kind: ClassVar[str]
    settings: ClassVar[Mapping[str, object]] = {}

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the rule, as there is no file of weights."""
        return digest_json(self.kind, 1, self.settings)

    def check_pretrained(self, name: str, *, pretrained: bool) -> None:
        """Refuse random weights and those of a file.

        Parameters
        ----------
        name
            Of the backbone, for the message.
        pretrained
            The provider's own weights are asked for, which is to say none.
        """
        if not pretrained:
            raise BackboneError(f"{name} has no weights; leave --init and --weights out")
