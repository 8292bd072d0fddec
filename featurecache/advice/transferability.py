"""What features promise without a fit out of fold: LogME and the H-score, and the accuracy published for a network.

They rank networks before any training. Here a probe out of fold costs a second, so they are shown beside it, with
whether each would have chosen right; see `scripts/benchmark.py what` for how often that is.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from featurecache.advice.probe import Floats

IMAGENET_ACCURACY: Final = {
    "torchvision:alexnet": 56.5,
    "torchvision:squeezenet1_0": 58.1,
    "torchvision:squeezenet1_1": 58.2,
    "torchvision:vgg11": 69.0,
    "torchvision:vgg16": 71.6,
    "torchvision:vgg16_bn": 73.4,
    "torchvision:vgg19": 72.4,
    "torchvision:resnet18": 69.8,
    "torchvision:resnet34": 73.3,
    "torchvision:resnet50": 80.9,
    "torchvision:resnet101": 81.9,
    "torchvision:resnet152": 82.3,
    "torchvision:densenet121": 74.4,
    "torchvision:mobilenet_v2": 72.2,
    "torchvision:mobilenet_v3_small": 67.7,
    "torchvision:mobilenet_v3_large": 75.3,
    "torchvision:shufflenet_v2_x1_0": 69.4,
    "torchvision:efficientnet_b0": 77.7,
    "torchvision:efficientnet_v2_s": 84.2,
    "torchvision:regnet_y_400mf": 75.8,
    "torchvision:convnext_tiny": 82.5,
    "torchvision:convnext_base": 84.1,
    "torchvision:vit_b_16": 81.1,
    "torchvision:vit_l_16": 79.7,
    "torchvision:swin_t": 81.5,
    "timm:vit_tiny_patch16_224": 75.5,
    "timm:vit_small_patch16_224": 81.4,
    "timm:vit_base_patch16_224": 84.5,
    "efficientnet_lite0": 74.8,
    "efficientnet_lite1": 76.7,
    "efficientnet_lite2": 77.6,
}
"""Top-1, per cent, on ImageNet-1k, of the default weights, as torchvision's documentation, timm's table of results and
the repository of EfficientNet-Lite state it."""
_MOST_STEPS, _TOLERANCE = 100, 1e-5


def log_me(X: NDArray[np.floating], Y: Floats) -> float | None:
    """Return the logarithm of the evidence of a linear model, per row and output, with its precisions at their best.

    You et al., "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021, algorithm 1. Where
    features outnumber rows the determinant and the dimension are of the rank: a feature that no row tells from others
    is no evidence.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    Y : ndarray of float64 (n, n_outputs)
        Targets; classes as columns of 0 and 1. Columns that are the same everywhere, of classes that are not there,
        are left out.

    Returns
    -------
    float or None
        None where features, or all targets, do not vary.
    """
    rows, Y = np.asarray(X, np.float64), Y[:, Y.std(axis=0) > 0]
    if not rows.any() or not Y.shape[1]:
        return None
    left, singular, _ = linalg.svd(rows, full_matrices=False)
    # Below it there is only rounding.
    kept = singular > 1e-10 * max(float(singular[0]), 1e-300)
    left, squares = left[:, kept], singular[kept] ** 2
    projected = left.T @ Y
    return float(np.mean([_evidence(squares, of_output, y) for of_output, y in zip(projected.T, Y.T, strict=True)]))


def _evidence(squares: Floats, projected: Floats, y: Floats) -> float:
    """Return the evidence of one output, by fixed-point iteration of the precisions."""
    n, rank = len(y), len(squares)
    alpha, beta = 1.0, 1.0
    outside = max(float(y @ y - projected @ projected), 0.0)
    for _ in range(_MOST_STEPS):
        shrink = beta * squares / (alpha + beta * squares)
        weight = float(np.sum((shrink * projected) ** 2 / squares))
        residual = float(np.sum(((1 - shrink) * projected) ** 2)) + outside
        effective = float(shrink.sum())
        before = alpha, beta
        # What features explain wholly, or not at all, has a precision without bound.
        alpha, beta = effective / max(weight, 1e-12), (n - effective) / max(residual, 1e-12)
        if abs(alpha - before[0]) < _TOLERANCE * alpha and abs(beta - before[1]) < _TOLERANCE * beta:
            break
    shrink = beta * squares / (alpha + beta * squares)
    weight = float(np.sum((shrink * projected) ** 2 / squares))
    residual = float(np.sum(((1 - shrink) * projected) ** 2)) + outside
    evidence = n * np.log(beta) + rank * np.log(alpha) - n * np.log(2 * np.pi) - beta * residual - alpha * weight
    return float((evidence - np.sum(np.log(alpha + beta * squares))) / (2 * n))


def h_score(X: NDArray[np.floating], y: NDArray[np.int64]) -> float:
    """Return how much of the spread of features lies between the classes, 0 to the number of classes less one.

    Bao et al., "An information-theoretic approach to transferability in task transfer learning", ICIP 2019, definition
    2; with the shrunk covariance of Ibrahim et al., "Newer is not always better", ECML 2022, as with the sample
    covariance of few rows any features have the highest score.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    y : ndarray of int64 (n,)
        Class indices.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    rows = np.asarray(X, np.float64)
    rows = rows - rows.mean(axis=0)
    n, d = rows.shape
    classes, of_row = np.unique(y, return_inverse=True)
    means = np.stack([rows[of_row == index].mean(axis=0) for index in range(len(classes))])
    shares = np.bincount(of_row) / n
    shrinkage = float(ledoit_wolf_shrinkage(rows, assume_centered=True))
    middle = float(np.sum(rows**2)) / (n * d)
    if middle == 0:
        return 0.0
    # trace((a S + b I)^-1 M' P M) without a matrix of all features: S = R'R / n.
    weighted = means * np.sqrt(shares)[:, None]
    ridge = shrinkage * middle
    # Of many rows the covariance is hardly shrunk, and may be singular.
    if ridge < 1e-12 * middle:
        ridge = 1e-12 * middle
    # The smaller of two systems (Woodbury).
    if n <= d:
        inner = linalg.solve(
            np.eye(n) * ridge + (1 - shrinkage) / n * (rows @ rows.T), rows @ weighted.T, assume_a="pos"
        )
        solved = (weighted.T - (1 - shrinkage) / n * (rows.T @ inner)) / ridge
    else:
        solved = linalg.solve(np.eye(d) * ridge + (1 - shrinkage) / n * (rows.T @ rows), weighted.T, assume_a="pos")
    # Rounding may leave the range that it has by definition.
    return float(min(max(np.sum(weighted.T * solved), 0.0), len(classes) - 1.0))
