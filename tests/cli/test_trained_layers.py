"""Layers on cached activations, from the command line to the answers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import RUNTIME, TINY, copied, need, write_cache

from featurecache.backbones.registry import load_backbone
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.deployment.kept import keep_head
from featurecache.deployment.one_network import as_one_network, can_be_one_network
from featurecache.deployment.predict import predict
from featurecache.deployment.saved import open_head, with_layers
from featurecache.errors import HeadError
from featurecache.finetuning.settings import FineTuning
from featurecache.finetuning.training import LayerTraining
from featurecache.records import encode_record, read_record
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.store.gc import TRAINING, collect_garbage
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("few_settings")

HERE = "python:tiny_layers:"
TAPS = ("default", "stem:none", "input:none")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, and their features: pooled ones and whole activations."""
    root = tmp_path_factory.mktemp("layers")
    return write_cache(root, *TAPS, task="colours")


@pytest.fixture
def cache(extracted: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return copied(extracted, tmp_path)


@pytest.fixture(scope="module")
def trained(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a cache whose head ``kept`` is layers trained on a tap, which tests only read."""

    @functools.cache
    def train_once(head: str, tap: str) -> Path:
        cache = copied(extracted, tmp_path_factory.mktemp("trained"))
        store = FeatureStore.open(cache)
        tuning = FineTuning(learning_rate=(0.01,), epochs=3)
        training = LayerTraining(store=store, task=store.task("colours"), tuning=tuning, backbone=TINY)
        keep_head(store, "kept", training.train([store.find(tap=tap)], [head]).best)
        return cache

    return train_once


def heads(*options: object) -> list[object]:
    return ["--task", "colours", "--backbone", TINY, "--quiet", *options]


def train(*options: object) -> list[object]:
    return heads("--learning-rate", 0.01, *options)


def layers(head: str, tap: str, *options: object) -> list[object]:
    return train("--head", head, "--from-tap", tap, *options)


@pytest.mark.parametrize("head", ["tail", "layers:conv", HERE + "own"])
def test_layers_stand_in_one_table_with_other_heads(cache: Path, call: Callable, head: str) -> None:
    options = ["--tap", "pre_logits", "--head", "logistic", "--epochs", 3, "--json"]
    status, out, err = call("train", cache, *layers(head, "stem:none", *options))
    assert status == 0, err
    results = json.loads(out)["results"]
    assert {(r["head"], r["tap"]) for r in results} == {("logistic", "pre_logits:none"), (head, "stem:none")}
    assert results[0]["against_chosen"] is None
    assert results[1]["against_chosen"]["verdict"] in ("worse", "equivalent", "cannot tell", "the same answers")
    assert not (cache / TRAINING).exists()


@pytest.mark.parametrize("tap", ["stem:none", "input:none"])
@pytest.mark.parametrize("head", ["tail", "layers:conv", HERE + "own"])
def test_predictions_for_files_are_those_of_training_for_their_rows(cache: Path, head: str, tap: str) -> None:
    store = FeatureStore.open(cache)
    task, feature_set = store.task("colours"), store.find(tap=tap)
    tuning = FineTuning(learning_rate=(0.01,), epochs=3)
    report = LayerTraining(store=store, task=task, tuning=tuning, backbone=TINY).train([feature_set], [head])
    keep_head(store, "kept", report.best)
    rows, _ = task.rows(feature_set.open(), report.best.result.reported)
    files = [cache.parent / "photos" / uri for uri in store.samples.uris_of(rows)]
    agreed = head if head.startswith("python:") else None
    answers = list(predict(cache / "heads" / "kept", files, backbone=TINY, layers=agreed))
    said = {answer.path: answer for answer in answers}
    for file, expected in zip(files, report.best.result.proba, strict=True):
        found = list(said[str(file)].probabilities.values())
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(
    ("head", "tap"),
    [("tail", "stem:none"), ("tail", "input:none"), ("layers:conv", "stem:none"), (HERE + "own", "stem:none")],
)
def test_backbone_and_layers_answer_as_one_network_what_they_answer_one_after_the_other(
    trained: Callable[[str, str], Path], tmp_path: Path, head: str, tap: str, runtime: str
) -> None:
    need(runtime)
    cache = trained(head, tap)
    files = sorted((cache.parent / "photos").rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    agreed = head if head.startswith("python:") else None
    network = load_backbone(BackboneRequest(name=TINY))
    saved = with_layers(open_head(cache / "heads" / "kept"), network, agreed)
    features = FeatureStore.open(cache).find(tap=tap).open()
    rows = FeatureStore.open(cache).samples.rows_of(np.stack([np.frombuffer(digest(f), np.uint8) for f in files]))
    expected = saved.probabilities(features.read(rows).astype(np.float32))
    settings = ExtractionSettings(runtime=runtime, batch_size=8)
    options = {"backbone": TINY, "layers": agreed, "settings": settings}
    answers = list(predict(cache / "heads" / "kept", [*files, broken], **options))
    assert [answer.status for answer in answers] == ["ok"] * len(files) + ["not_an_image"]
    found = np.array([list(answer.probabilities.values()) for answer in answers[:-1]])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # else any answers would do


def test_one_network_rounds_its_activations_as_the_cache_does(cache: Path, call: Callable) -> None:
    source, options = cache.parent / "photos", ["--tap", "stem:none", "--dtype", "bfloat16"]
    assert call("extract", source, "--cache", cache, "--backbone", TINY, *options, *RUNTIME)[0] == 0
    given = ["--dtype", "bfloat16", "--epochs", 5, "--save", "kept"]
    assert call("train", cache, *layers("tail", "stem:none", *given))[0] == 0
    network = load_backbone(BackboneRequest(name=TINY))
    saved = with_layers(open_head(cache / "heads" / "kept"), network)
    (tap,) = resolve_taps(network, ["stem:none"])
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    activations = TappedBackbone(network, [tap])(images)[tap.name]
    exact, rounded = (
        saved.estimator.fitted_layers(each).detach() for each in (activations, activations.bfloat16().float())
    )
    found = as_one_network(saved, network, tap)[1].module(images)
    torch.testing.assert_close(found, rounded, rtol=0, atol=1e-6)
    assert (found - exact).abs().max() > 1e-5, "else rounding would not be seen"


@pytest.mark.parametrize(("options", "said"), [([], True), (["--batch-norm", "train"], False)])
def test_that_norms_keep_their_statistics_is_said(cache: Path, call: Callable, options: list[str], said: bool) -> None:
    out = call("train", cache, *layers("tail", "stem:none", "--epochs", 1, *options))[1]
    assert ("norms keep the statistics of the pretrained weights" in out) == said
    if said:
        assert not json.loads(call("train", cache, *heads("--head", "ridge", "--json"))[1])["frozen_statistics"]


def test_an_input_whose_activations_the_cache_would_not_hold_gets_no_answer(trained: Callable[..., Path]) -> None:
    network = load_backbone(BackboneRequest(name=TINY))
    saved = with_layers(open_head(trained("tail", "stem:none") / "heads" / "kept"), network)
    (tap,) = resolve_taps(network, ["stem:none"])
    whole = as_one_network(saved, network, tap)[1].module
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert whole(images).isfinite().all()
    images[1] *= 1e9
    assert whole(images).isnan().all(dim=1).tolist() == [False, True]


def test_somebodys_own_layers_are_not_traced(trained: Callable[..., Path]) -> None:
    """They may decide by what they see."""
    network = load_backbone(BackboneRequest(name=TINY))
    own, conv = (
        with_layers(open_head(trained(head, "stem:none") / "heads" / "kept"), network, agreed)
        for head, agreed in ((HERE + "own", HERE + "own"), ("layers:conv", None))
    )
    assert (can_be_one_network(own), can_be_one_network(conv)) == (False, True)


def digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def test_views_are_rows_to_train_on(make_folder: Callable[..., Path], tmp_path: Path, call: Callable) -> None:
    source, cache = make_folder(per_class=12), tmp_path / "v"
    for views in ([], ["--views", 3]):
        assert (
            call("extract", source, "--cache", cache, "--backbone", TINY, "--tap", "stem:none", *views, *RUNTIME)[0]
            == 0
        )
    assert call("task", "add", cache, "colours", "--from-folders")[0] == 0
    status, out, err = call("train", cache, *layers("tail", "stem:none", "--views", 3, "--epochs", 3, "--json"))
    assert status == 0, err
    assert json.loads(out)["results"][0]["views"] == 3


def test_labels_and_numbers(cache: Path, call: Callable, tmp_path: Path) -> None:
    files = sorted((cache.parent / "photos").rglob("*.png"))
    lines = [f"{p.relative_to(cache.parent / 'photos')},{p.parent.name},{len(p.parent.name)}.5" for p in files]
    table = tmp_path / "more.csv"
    table.write_text("\n".join(["path,tags,length", *lines]))
    assert call("task", "add", cache, "tags", table, "--label-column", "tags", "--kind", "multilabel")[0] == 0
    assert call("task", "add", cache, "length", table, "--label-column", "length", "--kind", "regression")[0] == 0
    for task in ("tags", "length"):
        options = layers("tail", "stem:none", "--epochs", 3, "--start", "probe", "--save", task)
        options[1] = task
        assert call("train", cache, *options)[0] == 0
        assert next(iter(predict(cache / "heads" / task, files[:1], backbone=TINY))).status == "ok"


def test_ladder_shows_each_rung_and_leaves_out_what_takes_too_long(cache: Path, call: Callable) -> None:
    status, out, err = call("train", cache, *train("--depths", "auto", "--epochs", 3, "--json"))
    assert status == 0, err
    rungs = json.loads(out)["ladder"]
    assert [rung["tap"] for rung in rungs] == ["pre_logits:none", "stem:none", "input:none"]
    sizes = [rung["num_trainable"] for rung in rungs]
    body, stem, output = 16 * 8 * 9 + 3 * 16, 8 * 3 * 9 + 3 * 8, 17 * 3
    assert sizes == [output, output + body, output + body + stem]
    assert [rung["num_bytes"] for rung in rungs] == [2 * 16, 2 * 8 * 16 * 16, 2 * 3 * 32 * 32]
    assert rungs[0]["against_probe"] is None
    assert all(rung["against_probe"] for rung in rungs[1:])
    assert all(rung["seconds"] > 0 for rung in rungs)
    assert [rung["chosen"] for rung in rungs].count(True) == 1
    document = json.loads(out)
    (chosen,) = (rung for rung in rungs if rung["chosen"])
    assert (document["chosen"]["head"], document["chosen"]["tap"]) == (chosen["head"], chosen["tap"])
    plan = document["ladder_plan"]
    assert [rung["tap"] for rung in plan["rungs"]] == ["stem:none", "input:none"]
    assert plan["num_trainings"] == sum(rung["num_trainings"] for rung in plan["rungs"])

    status, out, _ = call("train", cache, *train("--depths", "auto", "--epochs", 3, "--minutes", 1e-4))
    assert status == 0
    assert "s are left" in out
    assert f"after a linear head, {plan['num_trainings']} trainings to come: 2 depths" in out
    assert "against the linear head" in out
    assert "the shallowest is chosen unless a deeper one is better by more than chance" in out


@pytest.mark.parametrize(
    ("options", "kinds", "said"),
    [
        (train("--layer-decay", 0.5, "--epochs", 1), ["layer_decay"], "no effect, as what is trained is one group"),
        (
            heads("--learning-rate", 1000, "--clip", 0, "--epochs", 4),
            ["diverged"],
            "tail on stem:none: the loss rose from",
        ),
        (train("--epochs", 1), [], ""),
    ],
)
def test_what_is_doubtful_about_a_training_stands_in_the_report(
    cache: Path, call: Callable, options: list[object], kinds: list[str], said: str
) -> None:
    """The tail after the stem is one block; a rate of a thousand leaves all bounds."""
    status, out, err = call("train", cache, *options, "--head", "tail", "--from-tap", "stem:none", "--json")
    assert status == 0, err
    warnings = [each for each in json.loads(out)["warnings"] if each["kind"] != "no_better_than_baseline"]
    assert [warning["kind"] for warning in warnings] == kinds
    assert all(said in warning["text"] for warning in warnings)


# Exports take seconds each: each format and each kind of layers always, all pairs of them with -m slow.
EXPORTED = [("torch", "tail", "stem:none"), ("safetensors", "tail", "input:none"), ("onnx", "layers:conv", "stem:none")]
OTHER_EXPORTS = [
    *(("onnx", "tail", tap) for tap in ("stem:none", "input:none")),
    *(("torch", *layers) for layers in (("tail", "input:none"), ("layers:conv", "stem:none"))),
    *(("safetensors", head, "stem:none") for head in ("tail", "layers:conv")),
]


@pytest.mark.parametrize(
    ("format", "head", "tap"), [*EXPORTED, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHER_EXPORTS)]
)
def test_exported_files_answer_as_predict(
    trained: Callable[..., Path], tmp_path: Path, call: Callable, format: str, head: str, tap: str
) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            need(package)
    kept, out = trained(head, tap) / "heads" / "kept", tmp_path / f"out.{format}"
    status, said, err = call("export", kept, "--out", out, "--format", format, "--backbone", TINY, "--json")
    assert status == 0, err
    assert json.loads(said)["largest_difference"] < 1e-4


@pytest.mark.parametrize("images", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been_killed(
    cache: Path, call: Callable, images: bool
) -> None:
    options = train("--head", "tail", "--epochs", 3, "--batch-size", 4)
    options += ["--from-tap", "input:none", "--augment", "mixup"]
    if images:
        options[-4:] = ["--from-images", cache.parent / "photos", "--augment", "views"]
    assert call("train", cache, *options, "--save", "whole")[0] == 0
    command = [sys.executable, "-m", "featurecache", "train", cache, *options, "--save", "killed"]
    command += ["--resume", "--checkpoint-seconds", 0]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # Killed in the first fit of the protocol, and stopped in a later one.
    for count, number in ((1, signal.SIGKILL), (3, signal.SIGTERM)):
        process = subprocess.Popen([str(part) for part in command], env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and _num_steps(cache) < 5 + 20 * (count - 1):
            time.sleep(0.01)
        assert process.poll() is None, "it was to be killed before its end"
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "layers that were in training are kept, run the same command with --resume to go on" in error
    kept = sorted((cache / TRAINING).glob("*/*.safetensors"))
    assert len(kept) > 1
    store = FeatureStore.open(cache)
    assert set(collect_garbage(store).young) >= {str(path.relative_to(cache)) for path in kept}

    assert call("train", cache, *options, "--save", "killed", "--resume")[0] == 0
    whole, killed = (
        safetensors.numpy.load((cache / "heads" / name / "head.safetensors").read_bytes())
        for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, killed[name])
    assert not (cache / TRAINING).exists()


def _num_steps(cache: Path) -> int:
    """Steps of all fits that are kept."""
    total = 0
    for path in (cache / TRAINING).glob("*/*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            total += json.loads(file.metadata()["progress"])["step"]
    return total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (layers("tail", "pre_logits"), "it is or holds the output layer"),
        (train("--head", "tail"), "name the cached activations that layers are trained on with --from-tap"),
        (train("--from-tap", "stem:none"), "--from-tap is for layers that are trained; name them with --head tail"),
        (heads("--head", "ridge", "--epochs", 3), "--epochs is for layers that are trained"),
        (heads("--head", "ridge", "--resume"), "--resume is for layers that are trained"),
        (heads("--head", "ridge", "--minutes", 3), "--minutes is how long --depths auto may take"),
        (train("--depths", "auto", "--start", "fresh"), "--depths auto starts every tail from a linear head"),
        (layers("tail", "stem:none", "--memory", -1), "--memory must be above 0, got -1"),
        (layers("tail", "stem:none", "--checkpoint-seconds", "nan"), "checkpoint_seconds must be 0 or more, got nan"),
        (layers("tail", "all"), "name the cached activations that layers are trained on with --from-tap"),
        (layers("tail", "nowhere:none"), "unknown cached tap 'nowhere:none'"),
        (layers("layers:convv", "stem:none"), "unknown layers 'convv'; did you mean 'conv'"),
        (layers(HERE + "wrong", "stem:none"), r"the layers make (2, 4) of two rows, and should make (2, 3)"),
        (
            layers(HERE + "failing", "stem:none"),
            "failed for activations of shape (8, 16, 16) and 3 outputs: no such luck",
        ),
        (layers(HERE + "nothing", "stem:none"), "returned a module that has nothing to train"),
        (layers(HERE + "number", "stem:none"), "returned a int; it must return a torch.nn.Module"),
        (layers(HERE + "absent", "stem:none"), "cannot be imported"),
        (layers("tail", "stem:none", "--epochs", 0), "epochs must be a whole number of at least 1"),
        (layers("tail", "stem:none", "--device", "tpu"), "unknown device 'tpu'"),
        (train("--depths", "auto", "--head", "tail"), "--depths auto chooses what is trained; leave --head"),
        (train("--depths", "auto", "--minutes", 0), "--minutes must be above 0"),
        (train("--depths", "auto", "--tap", "pre_logits"), "a ladder needs whole activations"),
        (train("--depths", "auto", "--tap", "stem"), "a ladder needs pooled features"),
    ],
)
def test_requests_that_make_no_sense_say_so(
    extracted: Path, call: Callable, options: list[object], message: str
) -> None:
    status, _, err = call("train", extracted, *options)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_pooled_tap_is_answered_with_the_command_that_caches_it_whole(cache: Path, call: Callable) -> None:
    source = cache.parent / "photos"
    assert call("extract", source, "--cache", cache, "--backbone", TINY, "--tap", "stem:avg", *RUNTIME)[0] == 0
    status, _, err = call("train", cache, *layers("tail", "stem:avg"))
    assert status == 2
    assert f"extract SOURCE --cache {cache} --backbone {TINY} --tap stem:none" in err


def test_heads_are_trained_on_pooled_features_unless_others_are_named(extracted: Path, call: Callable) -> None:
    cache = extracted
    for choice in ([], ["--tap", "all"]):
        out = call("train", cache, *heads(*choice, "--head", "ridge", "--json"))[1]
        assert [result["tap"] for result in json.loads(out)["results"]] == ["pre_logits:none"]
    out = call("train", cache, *heads("--tap", "stem", "--head", "ridge", "--json"))[1]
    assert [result["tap"] for result in json.loads(out)["results"]] == ["stem:none"]
    out = call("sweep", cache, "--head", "ridge", "--quiet", "--json")[1]
    assert {row["tap"] for row in json.loads(out)["rows"]} == {"pre_logits:none"}


def test_int8_activations_are_warned_about(cache: Path, call: Callable) -> None:
    source = cache.parent / "photos"
    options = ["--tap", "stem:none", "--dtype", "int8"]
    assert call("extract", source, "--cache", cache, "--backbone", TINY, *options, *RUNTIME)[0] == 0
    status, _, err = call("train", cache, *layers("tail", "stem:none", "--dtype", "int8", "--epochs", 1))
    assert status == 0
    assert "is stored as int8: what rounding loses is lost to the layers" in err


def test_somebodys_own_code_runs_only_when_it_is_named(cache: Path, call: Callable) -> None:
    assert call("train", cache, *layers(HERE + "own", "stem:none", "--epochs", 1, "--save", "own"))[0] == 0
    head, photos = cache / "heads" / "own", cache.parent / "photos"
    status, _, err = call("predict", head, photos, "--backbone", TINY)
    assert (status, f"if you trust it, pass --layers {HERE}own" in err) == (2, True)
    assert call("predict", head, photos, "--backbone", TINY, "--layers", HERE + "own")[0] == 0
    assert call("train", cache, *heads("--tap", "pre_logits", "--head", "ridge", "--save", "plain"))[0] == 0
    status, _, err = call("predict", cache / "heads" / "plain", photos, "--backbone", TINY, "--layers", HERE + "own")
    assert (status, "leave --layers" in err) == (2, True)


def test_one_image_of_each_class(make_folder: Callable[..., Path], tmp_path: Path, call: Callable) -> None:
    """Nothing can be held out: the folds lack a class each, and what was chosen is scored on other images."""
    source, cache = make_folder(per_class=2), tmp_path / "one"
    assert call("extract", source, "--cache", cache, "--backbone", TINY, "--tap", "stem:none", *RUNTIME)[0] == 0
    files = sorted(source.rglob("*.png"))
    lines = [f"{p.relative_to(source)},{p.parent.name},{'train' if p.stem == '000' else 'test'}" for p in files]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label,split", *lines]))
    assert call("task", "add", cache, "colours", table)[0] == 0
    status, out, err = call("train", cache, *layers("tail", "stem:none", "--epochs", 2, "--json"))
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    assert (result["selection_score"], result["test"]["n"]) == (0.0, 3)


def forged(cache: Path, head: str, change: Callable[[dict], None]) -> Path:
    """Write a stranger's record over that of a saved head, digests and all."""
    path = cache / "heads" / head / "head.json"
    record = read_record(path, "head")
    change(record)
    body = {key: value for key, value in record.items() if key in ("arrays", "estimator", "meta", "written_by")}
    path.write_bytes(encode_record("head", body))
    return path.parent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["meta"].update(head="tail"), "does not work with its layers (nothing is kept for"),
        (lambda record: record["meta"].update(head="ridge"), "is no name of layers"),
        (lambda record: record["meta"].update(head="layers:mlp"), "does not work with its layers"),
        (lambda record: record["estimator"]["params"].update(device="cuda"), "has no parameter 'device'"),
        (lambda record: record["estimator"]["params"].update(checkpoints="/tmp"), "has no parameter 'checkpoints'"),
    ],
)
def test_a_strangers_head_that_fits_no_layers_is_refused(
    trained: Callable[..., Path], tmp_path: Path, call: Callable, change: Callable[[dict], None], message: str
) -> None:
    cache = copied(trained("layers:conv", "stem:none"), tmp_path)
    head = forged(cache, "kept", change)
    status, _, err = call("predict", head, cache.parent / "photos", "--backbone", TINY)
    assert status == 2
    assert message in err


def test_a_record_cannot_ask_for_more_memory_than_its_arrays_hold(cache: Path, call: Callable) -> None:
    """2 million activations into 256 units are 2 GB; they are compared before anything of that size is made."""
    assert call("train", cache, *layers("layers:mlp", "stem:none", "--epochs", 1, "--save", "mlp"))[0] == 0
    saved = open_head(cache / "heads" / "mlp")
    saved.estimator.shape, saved.estimator.n_features_in_ = (1 << 21,), 1 << 21
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HeadError, match="does not work with its layers"):
        with_layers(saved, load_backbone(BackboneRequest(name=TINY)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_verify_passes_a_cache_with_trained_layers(cache: Path, call: Callable) -> None:
    before = torch.get_num_threads()
    assert call("train", cache, *layers("tail", "stem:none", "--epochs", 1, "--save", "tail"))[0] == 0
    assert torch.get_num_threads() == before
    assert call("verify", cache)[0] == 0


def test_what_is_done_is_not_trained_again_and_others_are_left_alone(cache: Path, call: Callable) -> None:
    """Killed at its second tail, a training takes over the first; another that ends meanwhile takes nothing away."""
    store = FeatureStore.open(cache)
    task, sets = store.task("colours"), [store.find(tap=tap) for tap in ("stem:none", "input:none")]
    tuning = FineTuning(learning_rate=(0.01,), epochs=2)
    training = LayerTraining(store=store, task=task, tuning=tuning, backbone=TINY)
    training.train_head(sets[0], "tail")
    begun = tuning.started(pretrained=True)
    folders = [training.checkpoint_folder(each, "tail", begun) for each in sets]
    kept = {path: path.stat().st_mtime_ns for path in folders[0].iterdir()}
    assert kept
    assert not folders[1].exists()

    other = FineTuning(learning_rate=(0.02,), epochs=2)
    replace(training, tuning=other).train(sets[:1], ["tail"])
    assert {path: path.stat().st_mtime_ns for path in folders[0].iterdir()} == kept

    resumed = replace(training, tuning=replace(tuning, resume=True)).train_head(sets[0], "tail")
    assert {path: path.stat().st_mtime_ns for path in folders[0].iterdir()} == kept, "nothing was trained again"
    assert resumed.best.result.estimator.n_iter_ > 0
    training.remove_checkpoints(sets, ["tail"])
    assert not (cache / TRAINING).exists()


def test_a_rung_that_diverges_is_reported_and_the_others_stay(cache: Path, call: Callable) -> None:
    options = ["--depths", "auto", "--epochs", 2, "--clip", 0, "--json"]
    wild = train(*options)
    wild[wild.index("--learning-rate") + 1] = 1e30
    status, out, err = call("train", cache, *wild)
    assert status == 0, err
    rungs = json.loads(out)["ladder"]
    assert "seconds" in rungs[0]
    assert all("diverges" in rung["reason"] for rung in rungs[1:])
