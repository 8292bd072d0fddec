import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featurecache.errors import HeadError
from featurecache.hashing import canonical_json, digest_bytes
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.encoding import decode_estimator
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.knn import CosineKnn
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.registry import HEADS, TOKEN_HEADS, make_head
from featurecache.records import MAX_RECORD_BYTES

META = {"classes": ["a", "b"], "temperature": 0.5}


def _fitted(name, *, n=60, d=7, classes=(0, 1, 2), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    y = np.array(classes)[np.arange(n) % len(classes)]
    X = rng.normal(size=(n, d)).astype(dtype)
    X[:, 0] += np.arange(n) % len(classes)
    few = {"epochs": 3} if name in ("mlp", "attentive") else {}
    estimator = make_head(name, **few)
    fit_estimator(estimator, X, y)
    return estimator, np.concatenate([X, rng.normal(size=(20, d)).astype(dtype)])


def _assert_same(before, after, X):
    np.testing.assert_array_equal(before.predict(X), after.predict(X))
    for method in ("decision_function", "predict_proba"):
        assert hasattr(before, method) == hasattr(after, method)
        if hasattr(before, method):
            assert getattr(before, method)(X).tobytes() == getattr(after, method)(X).tobytes()


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2, 5), ("cat", "dog"), (False, True)], ids=str)
@pytest.mark.parametrize("name", [*HEADS, *TOKEN_HEADS])
def test_round_trip_is_bit_identical(tmp_path, name, classes):
    estimator, X = _fitted(name, classes=classes)
    save_head(tmp_path / "new" / "head", estimator, META)
    loaded, meta = load_head(tmp_path / "new" / "head")[:2]
    assert meta == META
    assert sorted(p.name for p in (tmp_path / "new" / "head").iterdir()) == ["head.json", "head.safetensors"]
    _assert_same(estimator, loaded, X)
    np.testing.assert_array_equal(estimator.classes_, loaded.classes_)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([name for name in HEADS if name != "mlp"]),
    n=st.integers(4, 60),
    d=st.integers(1, 40),
    n_classes=st.integers(2, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_round_trip_of_any_shape(tmp_path_factory, name, n, d, n_classes, dtype):
    folder = tmp_path_factory.mktemp("head")
    estimator, X = _fitted(name, n=n, d=d, classes=range(n_classes), dtype=dtype)
    save_head(folder, estimator, {})
    _assert_same(estimator, load_head(folder)[0], X)


def test_object_labels_survive(tmp_path):
    X = np.arange(8.0).reshape(-1, 1)
    estimator = LogisticProbe().fit(X, np.array(["x", "yy"] * 4, dtype=object))
    save_head(tmp_path, estimator, {})
    assert load_head(tmp_path)[0].predict(X).tolist() == estimator.predict(X).tolist()


def test_saving_replaces(tmp_path):
    save_head(tmp_path, _fitted("ridge")[0], {"edition": 1})
    estimator, X = _fitted("knn", seed=3)
    save_head(tmp_path, estimator, {"edition": 2})
    loaded, meta = load_head(tmp_path)[:2]
    assert meta == {"edition": 2}
    _assert_same(estimator, loaded, X)


def test_equal_heads_are_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        save_head(tmp_path / folder, _fitted("mlp")[0], META)
    for file in ("head.json", "head.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def folder(tmp_path):
    save_head(tmp_path, _fitted("rbf_svm")[0], META)
    return tmp_path


def _rewrite(folder, change):
    document = json.loads((folder / "head.json").read_text())
    change(document)
    # Signed again: these are changes that a stranger makes on purpose, not damage.
    document.pop("digest")
    digest = digest_bytes(canonical_json(document).encode()) if _is_plain(document) else "0" * 64
    (folder / "head.json").write_text(json.dumps({**document, "digest": digest}))


def _is_plain(document):
    try:
        canonical_json(document)
    except ValueError:
        return False
    return True


def _last(document):
    return document["estimator"]


def _set(document, name, value):
    document["estimator"]["state"][name] = value


TAMPERS = {
    "it names the unknown class 'Popen'": lambda d: _last(d).update(type="Popen"),
    "unknown class None": lambda d: d.update(estimator=[]),
    "has no parameter 'shell'": lambda d: _last(d)["params"].update(shell=True),
    "the attribute 'predict' of its RbfSvm is missing or unknown": lambda d: _last(d)["state"].update(predict=1),
    "reads up to 2. Upgrade": lambda d: d.update(version=3),
    "reads up to 2": lambda d: d.update(version="two"),
    "is not a featurecache head record": lambda d: d.update(format="other"),
    "cannot read: {'array': '/etc'": lambda d: _set(d, "svc.support_", {"array": "/etc", "order": "C"}),
    "no entry for head.safetensors": lambda d: d["arrays"].pop("bytes"),
    "digest is not the one": lambda d: d["arrays"].update(sha256="0" * 64),
    "no meta data": lambda d: d.pop("meta"),
    "no list of steps": lambda d: d["estimator"].update(type="Pipeline", steps=[]),
    "unknown kind 'O8'": lambda d: _set(d, "svc._gamma", {"scalar": 1, "dtype": "O8"}),
    "'svc.support_' of its RbfSvm is missing": lambda d: _last(d)["state"].pop("svc.support_"),
    "support_ of its SVC has shape": lambda d: _set(d, "svc.support_", _last(d)["state"]["classes_"]),
    "not valid JSON (NaN": lambda d: d["meta"].update(x=float("nan")),
}


@pytest.mark.parametrize("message", TAMPERS)
def test_a_changed_description_is_refused(folder, message):
    _rewrite(folder, TAMPERS[message])
    with pytest.raises(HeadError) as caught:
        load_head(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"format": 1, "format": 2}', "a key occurs twice"),
        ('{"format": 1e999}', "1e999 is too large"),
        ("[" * 200_000, "not valid JSON"),
        ("\xff", "not valid JSON"),
        (" " * (MAX_RECORD_BYTES + 1), f"a record has at most {MAX_RECORD_BYTES}"),
    ],
    ids=["torn", "duplicate", "infinite", "deep", "not utf-8", "huge"],
)
def test_json_that_is_not_strict_is_refused(folder, text, message):
    (folder / "head.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(HeadError, match=message):
        load_head(folder)


@pytest.mark.parametrize("at", [0, 9, -1])
def test_a_flipped_byte_is_noticed(folder, at):
    data = bytearray((folder / "head.safetensors").read_bytes())
    data[at] ^= 1
    (folder / "head.safetensors").write_bytes(data)
    with pytest.raises(HeadError, match=r"digest is not the one in head\.json\. Save the head again"):
        load_head(folder)


@pytest.mark.parametrize("file", ["head.json", "head.safetensors"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    message = "no head in .*head.json cannot be read" if file == "head.json" else "head.safetensors.*No such file"
    with pytest.raises(HeadError, match=message):
        load_head(folder)


def test_a_head_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    for name in ("one", "other"):
        save_head(tmp_path / name, _fitted("ridge")[0], META)
    with pytest.raises(HeadError, match="no head in .*nowhere.*there are one, other next to it"):
        load_head(tmp_path / "nowhere")


def test_an_interrupted_replacement_leaves_the_old_head(folder, monkeypatch):
    before, _ = load_head(folder)[:2]

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("featurecache.atomic._move_folder", killed)
    estimator, _ = _fitted("ridge", seed=5)
    with pytest.raises(KeyboardInterrupt):
        save_head(folder, estimator, {})
    after, _ = load_head(folder)[:2]
    assert type(after) is type(before)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("theirs", [LogisticRegression(C=0.1), LinearSVC(C=0.01), RidgeClassifier(alpha=10.0)])
def test_linear_classifiers_of_scikit_learn_that_the_first_trees_saved_are_read(theirs, n_classes):
    rng = np.random.default_rng(0)
    X, y = 5 * rng.normal(size=(60, 4)) + 3, np.arange(60) % n_classes
    pipeline = make_pipeline(StandardScaler(), theirs).fit(X + y[:, None], y)
    arrays, steps = {}, []
    for name, step in pipeline.steps:
        fitted = ("n_features_in_", "mean_", "var_", "scale_", "classes_", "coef_", "intercept_", "n_iter_")
        state = {key: getattr(step, key) for key in fitted if getattr(step, key, None) is not None}
        kept = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
        arrays |= {f"{name}.{key}": value for key, value in kept.items()}
        state |= {key: {"array": f"{name}.{key}", "order": "C"} for key in kept}
        if isinstance(step, RidgeClassifier):
            state["_label_binarizer"] = {"type": "LabelBinarizer", "params": {}, "state": {}}
        params = {key: value for key, value in step.get_params().items() if not isinstance(value, dict)}
        steps.append([name, {"type": type(step).__name__, "params": params, "state": state}])
    head = decode_estimator({"type": "Pipeline", "steps": steps}, arrays)
    np.testing.assert_allclose(head.decision_function(X), pipeline.decision_function(X))
    np.testing.assert_array_equal(head.predict(X), pipeline.predict(X))
    if hasattr(pipeline, "predict_proba"):
        np.testing.assert_allclose(head.predict_proba(X), pipeline.predict_proba(X))
    garbled = {**arrays, "standardscaler.scale_": np.zeros(4)}
    with pytest.raises(HeadError, match="the means and scales of its StandardScaler do not fit its features"):
        decode_estimator({"type": "Pipeline", "steps": steps}, garbled)


def test_a_head_whose_replacement_an_earlier_release_did_not_finish_is_read(folder):
    before, _ = load_head(folder)[:2]
    arrays = (folder / "head.safetensors").read_bytes()
    (folder / f".head.safetensors.{digest_bytes(arrays)[:16]}").write_bytes(arrays)
    (folder / "head.safetensors").write_bytes(b"of the next head")
    after, _ = load_head(folder)[:2]
    assert type(after) is type(before)
    save_head(folder, _fitted("ridge")[0], META)
    assert sorted(path.name for path in folder.iterdir()) == ["head.json", "head.safetensors"]


def test_what_people_put_beside_a_head_stays(folder):
    (folder / "notes.txt").write_text("trained on Tuesday")
    save_head(folder, _fitted("ridge")[0], META)
    assert (folder / "notes.txt").read_text() == "trained on Tuesday"


def test_of_two_writers_at_once_one_leaves_its_head_and_readers_find_a_whole_one(tmp_path):
    """Each head says in its record how wide it is; halves of two would contradict one another."""
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from featurecache.heads.knn import CosineKnn\n"  # needs no torch, which takes seconds to load
        "from featurecache.heads.bundle import load_head, save_head\n"
        "folder, width = Path(sys.argv[1]), int(sys.argv[2])\n"
        "head = CosineKnn().fit(np.random.default_rng(0).normal(size=(20, width)), [0, 1] * 10)\n"
        "for _ in range(40):\n"
        "    save_head(folder, head, {'width': width})\n"
        "    loaded, meta = load_head(folder)[:2]\n"
        "    assert loaded.directions_.shape == (20, meta['width'])\n"
    )
    save_head(tmp_path / "heads" / "h", _fitted("ridge")[0], META)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "heads" / "h"), str(width)], stderr=subprocess.PIPE
        )
        for width in (3, 4)
    ]
    assert [(writer.communicate(timeout=300)[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["h"]


def test_a_torn_pair_is_noticed(folder):
    (folder / "head.safetensors").write_bytes(safetensors.numpy.save({"x": np.zeros(3)}))
    with pytest.raises(HeadError, match="digest"):
        load_head(folder)


@pytest.mark.parametrize(
    ("estimator", "meta", "message"),
    [
        (
            RandomForestClassifier(),
            {},
            "a RandomForestClassifier cannot be saved: it states no arrays .* do: logistic,",
        ),
        (LogisticProbe(), {}, "fit the head before saving it"),
        (LogisticProbe(class_weight={0: 1.0}).fit([[0.0], [1.0]], [0, 1]), {}, "class_weight is a dict"),
        (LogisticProbe().fit([[0.0], [1.0]], [0, 1]), {"x": float("nan")}, "cannot be kept"),
        (LogisticProbe().fit([[0.0], [1.0]], [0, 1]), {"x": object()}, "cannot be kept"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_writing(tmp_path, estimator, meta, message):
    with pytest.raises(HeadError, match=message):
        save_head(tmp_path / "head", estimator, meta)
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_neighbors": -3}, "has -3 neighbours"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"labels_": np.array([0, 1, 7, 0])}, "not those of its classes"),
        ({"labels_": np.array([0, 1])}, "do not belong together"),
        ({"directions_": np.zeros((0, 2)), "labels_": np.zeros(0, int)}, "do not fit its features"),
        ({"directions_": np.full((4, 2), np.nan)}, "not finite numbers"),
        ({"classes_": np.arange(9)}, "not those of its classes"),
    ],
    ids=str,
)
def test_neighbours_that_do_not_fit_together_are_refused(tmp_path, changed, message):
    estimator = CosineKnn(3).fit([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]], [0, 1, 0, 1])
    for name, value in changed.items():
        setattr(estimator, name, value)
    save_head(tmp_path / "h", estimator, {})
    with pytest.raises(HeadError, match=message):
        load_head(tmp_path / "h")


def _swap(state, one, other):
    state[one], state[other] = state[other], state[one]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("coefs_.1"), "do not belong together"),
        (lambda state: state.update(coefs_=3), "has no attribute 'coefs_'"),
        (lambda state: _swap(state, "coefs_.0", "coefs_.1"), "which do not fit"),
        (lambda state: _swap(state, "intercepts_.0", "intercepts_.1"), "which do not fit"),
        (lambda state: state.update({"intercepts_.0": state["coefs_.0"]}), "which do not fit"),
        (lambda state: state.update({"coefs_.0": state["classes_"]}), "are not numbers"),
    ],
)
def test_layers_that_do_not_fit(tmp_path, change, message):
    save_head(tmp_path, _fitted("mlp")[0], META)
    _rewrite(tmp_path, lambda document: change(document["estimator"]["state"]))
    with pytest.raises(HeadError, match=message):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda node: node["params"].update(num_tokens=3), "has 3 tokens, which do not fit"),
        (lambda node: node["params"].update(num_tokens=0), "has 0 tokens, which do not fit"),
        (lambda node: node["params"].update(num_tokens="7"), "has '7' tokens, which do not fit"),
        (lambda node: node["params"].update(num_tokens=7), "have shapes"),
        (lambda node: node["state"].update(coef_=node["state"]["queries_"]), "have shapes"),
        (lambda node: node["state"].update(queries_=node["state"]["classes_"]), "are not numbers"),
    ],
)
def test_attention_that_does_not_fit(tmp_path, change, message):
    save_head(tmp_path, _fitted("attentive")[0], META)
    _rewrite(tmp_path, lambda document: change(document["estimator"]))
    with pytest.raises(HeadError, match=message):
        load_head(tmp_path)
