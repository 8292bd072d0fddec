"""Two feature sets of a table are never called alike, and no more is said of them than tells them apart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.store.naming import distinct_names

pytestmark = pytest.mark.quick

FINGERPRINTS = ["ab" * 32, "ab" * 31 + "cd", "abababab" + "0" * 56, "12" * 32]
SETS = st.fixed_dictionaries(
    {
        "backbone": st.sampled_from(["efficientnet_lite0", "timm:vit_small", "float32"]),
        "tap": st.sampled_from(["pre_logits:none", "blocks.9:cls", "blocks.9:mean"]),
        "dtype": st.sampled_from(["float16", "float32"]),
        "views": st.sampled_from([None, 2, 8]),
        "fingerprint": st.sampled_from(FINGERPRINTS),
    }
)


@given(sets=st.lists(SETS, min_size=1, max_size=12))
def test_names_are_equal_for_equal_sets_only(sets: list[dict[str, Any]]) -> None:
    names = distinct_names(sets)
    assert len(set(names)) == len({tuple(each[key] for key in sorted(each)) for each in sets})
    for each, name in zip(sets, names, strict=True):
        assert name.startswith(each["tap"])
        for key in ("dtype", "backbone"):
            if len({other[key] for other in sets}) > 1:
                assert f", {each[key]}" in name


def test_what_all_have_in_common_is_not_repeated() -> None:
    one = {"backbone": "b", "tap": "pre_logits:none", "dtype": "float16", "views": None, "fingerprint": "ab" * 32}
    assert distinct_names([one]) == ["pre_logits:none"]
    assert distinct_names([one, one | {"tap": "stem:avg"}]) == ["pre_logits:none", "stem:avg"]
    assert distinct_names([one, one | {"dtype": "int8"}]) == ["pre_logits:none, float16", "pre_logits:none, int8"]
    other = one | {"fingerprint": "12" * 32}
    assert distinct_names([one, other]) == ["pre_logits:none (abababab)", "pre_logits:none (12121212)"]
    assert distinct_names([one | {"views": 3}]) == ["pre_logits:none, 3 views"]
