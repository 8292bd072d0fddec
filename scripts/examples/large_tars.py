# %% [markdown]
# # Tar files as a source, and features as a stream
#
# `python scripts/examples/large_tars.py 'shards/photos-{0000..0099}.tar'`: each tar holds images and, beside each, its
# class in a file `.cls`, as WebDataset writes them.

# %%
import sys
from pathlib import Path

from torch.utils.data import DataLoader

import featurecache as fc

pattern = sys.argv[1] if len(sys.argv) > 1 else "shards/photos-{0000..0099}.tar"
cache = Path(pattern).with_name("tars.cache")

# %% [markdown]
# Killed and started again, it goes on where it was.

# %%
done = fc.run(pattern, cache=cache)
print(done)

# %% [markdown]
# A stream reads blocks of neighbouring rows, so that more than fits in memory can be learned from.

# %%
store = done.extraction.store
stream = store.features().to_torch(store.task("run"), "train", stream=True, seed=1)
for X, y in DataLoader(stream, batch_size=64):
    print(tuple(X.shape), y[:5].tolist())
    break
