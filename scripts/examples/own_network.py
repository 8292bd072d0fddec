# %% [markdown]
# # A network of one's own, and deeper layers
#
# Any `nn.Module` is a backbone. Here a small untrained one; take yours.
# `python scripts/examples/own_network.py flowers/`.

# %%
import sys
from pathlib import Path

import torch
from torch import nn

import featurecache as fc

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "flowers")
torch.manual_seed(0)
network = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 16, 5, stride=4), nn.ReLU()),
    nn.Sequential(nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)

# %% [markdown]
# Its output layer is found and removed; earlier layers are kept as well, and compared.

# %%
name = fc.name_module(network, "small")
store = fc.extract(
    folder,
    folder.with_name("own.cache"),
    backbone=name,
    taps=["0:avg", "1:avg", "default"],
    preprocess={"crop": 64, "resize": 72},
)
task = store.add_task("kind", fc.labels_from_folders(folder), replace=True)
report = fc.train_heads(store, task, store.feature_sets(), ["logistic"])
for head in report.heads:
    print(head.feature_set.tap, f"{head.result.selection_score:.3f}")
