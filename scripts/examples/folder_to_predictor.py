# %% [markdown]
# # From a folder of images to a predictor
#
# `flowers/` holds one folder of images for each class. Run the cells in an editor that knows `# %%`, or the whole file:
# `python scripts/examples/folder_to_predictor.py flowers/`.

# %%
import sys
from pathlib import Path

import featurecache as fc

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "flowers")

# %% [markdown]
# One call extracts features, trains the standard heads, writes a report and keeps the best head. What is cached is not
# computed again: run it after adding ten images, and ten are computed.

# %%
done = fc.run(folder, cache=folder.with_name(f"{folder.name}.cache"))
print(done)

# %% [markdown]
# The kept head is a scikit-learn estimator that takes images.

# %%
head = fc.load_head(done.saved)
photos = sorted(folder.rglob("*.*"))[:3]
for photo, label in zip(photos, head.predict(photos), strict=True):
    print(photo.name, "is", label)

# %% [markdown]
# What was predicted for images that the head was not fitted on, the wrong ones first.

# %%
rows = sorted(done.extraction.store.predictions("run"), key=lambda row: row["right"])
for row in rows[:3]:
    print(row["name"], "is", row["label"], "and was called", row["prediction"])
