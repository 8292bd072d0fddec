# %% [markdown]
# # From a table, as a contest gives it, to a submission
#
# `train.csv` names images by `image_id` and says their label; `sample_submission.csv` shows what is wanted.
# `python scripts/examples/table_to_submission.py FOLDER` with both tables, `train/` and `test/` in FOLDER.

# %%
import sys
from pathlib import Path

import featurecache as fc
from featurecache.cli import main

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "contest")
cache = folder / "contest.cache"

# %% [markdown]
# The table is read and its names are matched to files before anything is extracted.

# %%
labels = fc.labels_from_csv(folder / "train.csv")
done = fc.run(folder / "train", cache=cache, labels=labels)
print(done.training)

# %% [markdown]
# The submission has the columns, rows and names of the sample.

# %%
options = ["--like", str(folder / "sample_submission.csv"), "--out", str(folder / "submission.csv"), "--replace"]
status = main(["predict", str(done.saved), str(folder / "test"), *options])
print("status", status)
print((folder / "submission.csv").read_text()[:200])
