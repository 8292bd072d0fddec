"""``predict --outliers``: inputs that are unlike all that a head was fitted on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RUNTIME, TINY, write_cache, write_image

from featurecache.deployment.predict import predict
from featurecache.errors import RequestError
from featurecache.heads.bundle import load_head, save_head

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("outliers"), per_class=15)


@pytest.fixture
def head(cache: Path, call: Call) -> Path:
    assert call("train", cache, "--task", "colour", "--head", "ridge", "--save", "kept", "--quiet")[0] == 0
    return cache / "heads" / "kept"


def test_they_are_named_in_every_form(cache: Path, head: Path, tmp_path: Path, call: Call) -> None:
    new = tmp_path / "new"
    usual = sorted((cache.parent / "photos").rglob("*.png"))[0]
    (new / "usual").mkdir(parents=True)
    (new / "usual" / "a.png").write_bytes(usual.read_bytes())
    noise = np.random.default_rng(0).integers(0, 2, (40, 40, 1)) * np.array([255, 0, 255])
    from PIL import Image

    Image.fromarray(noise.astype(np.uint8)).save(new / "z.png")
    command = ["predict", head, new, "--backbone", TINY, *RUNTIME, "--quiet"]
    status, out, err = call(*command, "--outliers", "--json")
    assert status == 0, out + err
    document = json.loads(out)
    first, second = document["predictions"]
    assert (first["is_outlier"], second["is_outlier"]) == (False, True)
    assert second["p_value"] <= 0.05 < first["p_value"]
    (warning,) = [warning for warning in document["warnings"] if warning["kind"] == "outliers"]
    assert (warning["count"], warning["examples"]) == (1, [second["path"]])
    _, out, err = call(*command, "--outliers", "--csv")
    assert [row["outlier"] for row in csv.DictReader(io.StringIO(out))] == ["no", "yes"]
    assert "1 of 2 inputs is unlike all that the head was fitted on, first" in err
    assert call(*command, "--outliers")[1].count("outlier\n") + call(*command, "--outliers")[1].count("outlier ") >= 1
    # Nothing is said of them where nobody asked.
    _, out, _ = call(*command, "--csv")
    assert "outlier" not in out
    assert json.loads(call(*command, "--json")[1])["predictions"][1]["p_value"] is None


def test_heads_that_cannot_tell_refuse(head: Path, tmp_path: Path) -> None:
    estimator, meta, _ = load_head(head)
    save_head(tmp_path / "old", estimator, meta)
    image = write_image(tmp_path / "a.png", (255, 0, 0), seed=0)
    with pytest.raises(RequestError, match="cannot tell outliers: it was fitted on fewer than 20 samples"):
        predict(tmp_path / "old", [image], backbone=TINY, outliers=0.05)
    with pytest.raises(RequestError, match="not of views; leave --tta or --outliers out"):
        predict(head, [image], backbone=TINY, outliers=0.05, tta=2)
    with pytest.raises(RequestError, match="between 0 and 1, such as 0.05; got 5"):
        predict(head, [image], backbone=TINY, outliers=5)
    with pytest.raises(RequestError, match=r"tell no share below 0\.0\d+; ask for a share of 0\.0\d"):
        predict(head, [image], backbone=TINY, outliers=0.001)
