"""How deep in a network its parameters are: groups that learn alike where the learning rate falls towards the input.

A group is a block as `featurecache.backbones.suggestions` finds it, with what lies between it and the block before.
What comes before the first block is a group, and what comes after the last one. Names of layers say nothing here: one
library writes `encoder.layers.encoder_layer_3`, `features.5.2` and `trunk_output.block3.block3-1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featurecache.backbones.dry_run import DryRun


def depth_groups(seen: DryRun, blocks: Sequence[str], names: Iterable[str]) -> dict[str, int]:
    """Return the group of each parameter, from 0 at the input, without gaps.

    Parameters
    ----------
    seen
        A dry run of the network.
    blocks
        Nodes behind ``blocks``, in the order in which they run.
    names
        Of parameters, as in the network.
    """
    depths = {name: _depth(seen, blocks, name) for name in names}
    numbers = {depth: number for number, depth in enumerate(sorted(set(depths.values())))}
    return {name: numbers[depth] for name, depth in depths.items()}


def _depth(seen: DryRun, blocks: Sequence[str], name: str) -> int:
    """Return 0 before the first block, 1 in it, and so on; one more than there are blocks after the last."""
    for number, block in enumerate(blocks):
        if name.startswith(f"{block}."):
            return number + 1
    # Parameters outside of all blocks: by when the layer that owns them has ended.
    owner = name.rpartition(".")[0]
    while owner and not seen.num_calls[owner]:  # a layer whose parameters another one uses itself
        owner = owner.rpartition(".")[0]
    inside = [number for number, block in enumerate(blocks) if not owner or block.startswith(f"{owner}.")]
    if inside:  # class tokens and positions of what holds the blocks: it has ended after them, and used these before
        return inside[0] + 1 if inside[0] else 0
    later = [number for number, block in enumerate(blocks) if seen.order[block] > seen.order[owner]]
    if not later:
        return len(blocks) + 1
    return later[0] + 1 if later[0] else 0
