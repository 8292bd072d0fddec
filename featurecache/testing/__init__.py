"""Contract tests for sources, providers, engines and heads; needs the extra ``testing``.

Subclass a contract in a file of tests, fill in its first method, and pytest runs every law of that seam on what it
makes::

    from featurecache.testing import SourceContract

    class TestTars(SourceContract):
        def make_source(self, folder):
            ...
            return SourceSpec("tars", f"tars://{folder}"), {"0001.jpg": data}

The implementations of this package pass the same contracts.
"""

from __future__ import annotations

import pytest

# Before the files are imported: pytest shows the values in a failed assert only of what it has rewritten.
pytest.register_assert_rewrite(
    "featurecache.testing.sources",
    "featurecache.testing.providers",
    "featurecache.testing.engines",
    "featurecache.testing.heads",
)

from featurecache.testing.engines import EngineContract  # noqa: E402
from featurecache.testing.heads import HeadContract  # noqa: E402
from featurecache.testing.providers import ProviderContract  # noqa: E402
from featurecache.testing.sources import SourceContract  # noqa: E402

__all__ = ["EngineContract", "HeadContract", "ProviderContract", "SourceContract"]
