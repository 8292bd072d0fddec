"""How deep: whether a linear head on frozen features is enough, or layers trained deeper are worth their time.

Deeper training can only mend what a linear head gets wrong on the samples that it was fitted on: where that is nothing,
what is left is variance, and more parameters make it no smaller. Whether it does mend it, trainings tell; see
`featurecache.finetuning.ladder`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.finding import Finding
from featurecache.advice.paired import in_words, mean_difference

_NEGLIGIBLE = 0.02
"""Error in the sample that is not worth a training."""
_LEAST_ROWS = 100


def depth_finding(
    in_sample: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    name: str = "the features",
    next_command: str | None = None,
) -> Finding:
    """Tell whether layers trained deeper are worth trying.

    Parameters
    ----------
    in_sample : ndarray (n,)
        Errors of a linear probe on the rows that it was fitted on.
    groups : ndarray of int (n,), optional
        Rows that are alike.
    name : str
        What the features are called.
    next_command : str, optional
        That trains deeper.
    """
    found = mean_difference(in_sample, groups)
    # An error is not below 0, though an interval of Student may be.
    interval = in_words(found.mean, max(found.low, 0.0), found.high)
    if found.high < _NEGLIGIBLE:
        verdict, command = "linear head", None
        text = (
            f"a linear head on {name} is deep enough: it fits its own samples but for {interval}, which leaves deeper"
        )
        text += " layers nothing to mend"
    elif found.low > _NEGLIGIBLE / 2 and found.n >= _LEAST_ROWS:
        verdict, command = "try deeper", next_command
        text = (
            f"a linear head on {name} does not fit its own samples: error {interval}; train deeper layers, and compare"
        )
    else:
        verdict, command = "cannot tell", None
        text = f"cannot tell whether deeper layers would help: error of a linear head on its own samples {interval}"
        text += f"; needs about {max(2 * found.n, _LEAST_ROWS)} samples"
    return Finding(
        question="how",
        verdict=verdict,
        text=text,
        **found.figures,
        n=found.n,
        basis="error of a linear probe on the samples that it was fitted on",
        next_command=command,
    )
