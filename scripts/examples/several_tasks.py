# %% [markdown]
# # Several tasks on one cache
#
# Features are computed once; labels live apart. Here the class, and whether the file is above the median size.
# `python scripts/examples/several_tasks.py flowers/`.

# %%
import sys
from pathlib import Path

import numpy as np

import featurecache as fc

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "flowers")
store = fc.extract(folder, folder.with_name("tasks.cache"), backbone="efficientnet_lite0")

# %%
kinds = store.add_task("kind", fc.labels_from_folders(folder), replace=True)
names = store.samples.uris_of(range(len(store.samples)))
sizes = np.asarray(store.samples.sizes[:])
large = {name: "large" if size > np.median(sizes) else "small" for name, size in zip(names, sizes, strict=True)}
files = store.add_task("file", fc.labels_from_mapping(large), replace=True)

# %% [markdown]
# The same heads on both; arrays for anything else.

# %%
for task in (kinds, files):
    print(fc.train_heads(store, task, store.feature_sets(), ["logistic", "majority"]))
X, y = kinds.select(store.features(), "train")
print(X.shape, kinds.decode(y[:3]))

# %% [markdown]
# Is transfer the right thing here? Every answer has its interval, and the command to run next.

# %%
for finding in fc.advise(store, "kind", only=["when", "what", "more_data"]):
    print(finding)
