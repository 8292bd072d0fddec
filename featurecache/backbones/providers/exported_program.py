"""A program that ``torch.export.save`` wrote: ``file:PROGRAM.pt2``. Its code is read, never run; see `programs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.backbones.provider import Provided
from featurecache.errors import BackboneError, first_line
from featurecache.hashing import digest_file
from featurecache.specs import PreprocessSpec

if TYPE_CHECKING:
    from torch import Tensor

    from featurecache.backbones.programs.modules import ProgramModule

PREFIX = "file:"
# What libraries call the parameters of tokens that stand in front of the patches.
_CLASS_TOKENS = {"cls_token", "class_token", "class_embedding"}
_OTHER_TOKENS = {"dist_token", "distillation_token", "reg_token", "register_tokens"}


class ExportedProgramProvider:
    """Builds the network of a program: its modules under their paths, each of which can be tapped."""

    packages = ()

    def list_names(self) -> list[str]:
        """Return nothing: files are not searched."""
        return []

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Read the program and make its modules."""
        import torch

        from featurecache.backbones.programs.building import build
        from featurecache.backbones.programs.modules import output_layer
        from featurecache.backbones.programs.program import read_program
        from featurecache.backbones.programs.schemas import ProgramError

        if not pretrained and weights is None:
            raise BackboneError(
                f"{PREFIX}{name} cannot be initialised at random: a program does not say how its layers are drawn; "
                "export the network before any training, and name that file"
            )
        path = Path(name).expanduser()
        try:
            with torch.inference_mode(False):  # tensors of that mode would not tell that somebody wrote into them
                program = read_program(path)
            module = build(program)
        except ProgramError as error:
            raise BackboneError(f"{PREFIX}{name} cannot be used: {error}") from error
        preprocess = _preprocess(program.side)
        _try(name, module, preprocess.crop_shape)
        classifier = output_layer(module)
        num_class, num_other = _prefix_tokens(program.state)
        return Provided(
            module=module,
            preprocess=preprocess,
            classifiers=(classifier,) if classifier else None,
            num_prefix_tokens=num_class + num_other,
            has_class_token=num_class > 0,
            weights_source=f"program {path.name} (sha256 {digest_file(path)[:12]})",
            notes=_notes(program.side, preprocess, classifier, num_class + num_other),
            # The place of the file says nothing about the features.
            identity_name=f"{PREFIX}{path.name}",
        )

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the file: it holds the network and its weights."""
        path = Path(name).expanduser()
        return digest_file(path) if path.is_file() else None

    def reproducible(self, name: str) -> bool:
        """The file says everything."""
        return True


def _preprocess(side: int | None) -> PreprocessSpec:
    """Return the usual preprocess, its sizes in the usual proportion to each other."""
    usual = PreprocessSpec()
    return (
        usual
        if side is None
        else usual.override(crop=side, resize=round(side * usual.resize_shape[0] / usual.crop_shape[0]))
    )


def _try(name: str, module: ProgramModule, shape: tuple[int, int]) -> None:
    """Run the program once, and refuse one that fails, or that writes into its own parameters and buffers."""
    import torch

    state = [*module.parameters(), *module.buffers()]
    before = [tensor._version for tensor in state]
    try:
        with torch.inference_mode():
            module(torch.zeros(2, 3, *shape))
    # What a program calls may object to what it is given with any exception at all.
    except Exception as error:
        size = f"{shape[1]}x{shape[0]}"
        raise BackboneError(
            f"{PREFIX}{name} fails on images of {size} pixels ({type(error).__name__}: {first_line(error)})"
        ) from error
    if [tensor._version for tensor in state] != before:
        raise BackboneError(
            f"{PREFIX}{name} writes into its own parameters or buffers, so that its features would change from batch "
            "to batch; call .eval() on the network, then export it again"
        )


def _prefix_tokens(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count class tokens, and others in front of the patches, by the network's own parameters (1, tokens, features)."""
    leaves = {path.rpartition(".")[2]: tensor for path, tensor in state.items()}

    def count(names: set[str]) -> int:
        return sum(leaves[name].shape[-2] if leaves[name].ndim > 1 else 1 for name in names & set(leaves))

    return count(_CLASS_TOKENS), count(_OTHER_TOKENS)


def _notes(side: int | None, preprocess: PreprocessSpec, classifier: str | None, num_tokens: int) -> tuple[str, ...]:
    fixed = f"it takes images of {side} pixels a side" if side else "it takes images of any size"
    return (
        f"a program has no preprocess: the usual one is taken (resize {preprocess.resize}, crop {preprocess.crop}, "
        f"ImageNet's mean and standard deviation), and --resize, --crop, --mean, --std change it; {fixed}",
        *((f"{classifier} taken for the output layer",) if classifier else ()),
        *((f"{num_tokens} tokens taken for class and register tokens",) if num_tokens else ()),
    )
