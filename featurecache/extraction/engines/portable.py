"""Errors that travel from a worker to whoever waits for it."""

from __future__ import annotations

import pickle

from featurecache.errors import FeatureCacheError


def portable(error: Exception) -> Exception:
    """Return an error as it arrives in another process: itself, or one that says the same where it does not travel.

    Parameters
    ----------
    error : Exception
        Of this process.
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind: type[Exception] = FeatureCacheError if isinstance(error, FeatureCacheError) else RuntimeError
        return kind(str(error))
    return error
