"""A program that ``torch.export.save`` wrote: ``file:PROGRAM.pt2``.

``torch.export.load`` unpickles, and evaluates expressions that are in the file: it can run code, as any ``python:``
backbone does. ``torch.export.unflatten`` gives the modules back under the paths that they had in the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.backbones.provider import PinnedProvider, Provided
from featurecache.code_notice import notice_code_of_others
from featurecache.errors import BackboneError
from featurecache.files import why_not_regular
from featurecache.hashing import digest_file
from featurecache.specs import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

PREFIX = "file:"
# What libraries call the parameters of tokens that stand in front of the patches.
_CLASS_TOKENS = {"cls_token", "class_token", "class_embedding"}
_OTHER_TOKENS = {"dist_token", "distillation_token", "reg_token", "register_tokens"}


class ExportedProgramProvider(PinnedProvider):
    """Builds the network of a program: its modules under their paths, each of which can be tapped."""

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Load the program, which can run code, and make its modules.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        from featurecache.backbones.providers.exported_network import load_program

        if not pretrained and weights is None:
            raise BackboneError(
                f"{PREFIX}{name} cannot be initialised at random: a program does not say how its layers are drawn; "
                "export the network before any training, and name that file"
            )
        path = Path(name).expanduser()
        if reason := why_not_regular(path):
            raise BackboneError(f"{PREFIX}{name} cannot be used: {reason}; check the path")
        notice_code_of_others(PREFIX + name, "is opened by torch.export.load, which can run code that is in the file")
        network = load_program(f"{PREFIX}{name}", path)
        preprocess = _preprocess(network.side)
        num_class, num_other = _prefix_tokens(network)
        return Provided(
            module=network,
            preprocess=preprocess,
            classifiers=None,
            num_prefix_tokens=num_class + num_other,
            has_class_token=num_class > 0,
            weights_source=f"program {path.name} (sha256 {digest_file(path)[:12]})",
            notes=_notes(network.side, preprocess, num_class + num_other),
            # The folder of the file says nothing about the features; what it computes says all.
            identity_name=f"{PREFIX}{path.name}",
            architecture=network.digest(),
        )

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the file: it holds the network and its weights."""
        path = Path(name).expanduser()
        return digest_file(path) if path.is_file() else None


def _preprocess(side: int | None) -> PreprocessSpec:
    """Return the usual preprocess, its sizes in the usual proportion to each other."""
    usual = PreprocessSpec()
    side = side or usual.crop_shape[0]
    return usual.override(crop=side, resize=round(side * usual.resize_shape[0] / usual.crop_shape[0]))


def _prefix_tokens(network: nn.Module) -> tuple[int, int]:
    """Count class tokens, and others in front of the patches, by the network's own parameters (1, tokens, features)."""
    # By the last part of the name: a program may hold the network deeper down.
    leaves = {path.rpartition(".")[2]: tensor for path, tensor in network.named_parameters()}
    # A program carries no configuration: the names of its parameters are all there is to go by.
    num_class, num_other = (
        sum(leaves[name].shape[-2] if leaves[name].ndim > 1 else 1 for name in names & set(leaves))
        for names in (_CLASS_TOKENS, _OTHER_TOKENS)
    )
    return num_class, num_other


def _notes(side: int | None, preprocess: PreprocessSpec, num_tokens: int) -> tuple[str, ...]:
    fixed = f"it takes images of {side} pixels a side" if side else "it takes images of any size"
    return (
        f"a program has no preprocess: the usual one is taken (resize {preprocess.resize}, crop {preprocess.crop}, "
        f"ImageNet's mean and standard deviation), and --resize, --crop, --mean, --std change it; {fixed}",
        *((f"{num_tokens} tokens taken for class and register tokens",) if num_tokens else ()),
    )
