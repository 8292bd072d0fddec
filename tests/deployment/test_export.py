"""An exported network runs by itself and says what `predict` says; what cannot be exported is refused in one line."""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COLOURS, TINY, need, write_image
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from tiny_texts import MAX_TOKENS, some_texts, write_encoder, write_table

import featurecache as fc
from featurecache.cli import main
from featurecache.deployment import export as export_module
from featurecache.deployment.export import export_head
from featurecache.deployment.exporting.format import FORMATS
from featurecache.deployment.kept import keep_head
from featurecache.deployment.rounding import round_as
from featurecache.errors import (
    BackboneError,
    DriftError,
    HeadError,
    InputError,
    MissingExtraError,
    RequestError,
    RuntimeMismatchError,
    UnknownNameError,
)
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.registry import make_head
from featurecache.sources.decoding.images import load_image
from featurecache.specs import ExtractionSettings, PreprocessSpec, ViewSpec

pytestmark = pytest.mark.usefixtures("few_settings")

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)
HEADS = ("logistic", "mlp", "knn")


def photographs(folder: Path, per_class: int) -> Path:
    """Copy real pictures of three classes."""
    need("conformal_clip_data")
    import conformal_clip_data

    root = Path(conformal_clip_data.textile_simulated_root())
    for label in ("nominal", "local", "global"):
        (folder / label).mkdir(parents=True)
        for image in sorted((root / label).rglob("*.jpg"))[:per_class]:
            shutil.copy(image, folder / label)
    return folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of saved heads by name."""
    folder = tmp_path_factory.mktemp("made")
    photos = photographs(folder / "photos", 8)
    store = fc.extract(photos, folder / "cache", backbone=TINY, settings=SETTINGS)
    task = store.add_task("kind", fc.labels_from_folders())
    best = fc.train_heads(store, task, store.feature_sets(), ["logistic"], n_jobs=1).best
    folders = {"logistic": keep_head(store, "logistic", best)}
    X, y = task.select(store.features(), "train")
    for name, params in (("mlp", {"epochs": 5}), ("knn", {"n_neighbors": 7})):
        folders[name] = folder / "cache" / "heads" / name
        save_head(folders[name], make_head(name, **params).fit(X, y), {**meta_of(folders["logistic"]), "head": name})
    return folders


@pytest.fixture(scope="module")
def predicted(heads: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By head, what `predict` says of photographs."""
    photos = photographs(tmp_path_factory.mktemp("new") / "photos", 7)
    return {name: list(fc.predict(head, [photos], backbone=TINY, settings=SETTINGS)) for name, head in heads.items()}


def meta_of(folder: Path) -> dict[str, Any]:
    """Return what is known of a saved head."""
    return load_head(folder)[1]


@pytest.fixture
def changed(heads: dict[str, Path], tmp_path: Path) -> Any:
    """Write a head like a saved one, with changes to its meta data or another estimator."""

    def change(estimator: Any = None, **meta: Any) -> Path:
        before, known = load_head(heads["logistic"])[:2]
        save_head(tmp_path / "changed", estimator or before, {**known, **meta})
        return tmp_path / "changed"

    return change


def prepared(path: Path, how: dict[str, Any]) -> np.ndarray:
    """Do what the metadata says, with Pillow alone."""
    image: Image.Image = Image.open(path)
    if how["jpeg_draft"]:
        image.draft(None, (how["jpeg_draft"],) * 2)
    image = ImageOps.exif_transpose(image).convert("RGB")
    size = [how["resize"] * side // min(image.size) for side in image.size]
    image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
    left, top = (round((side - how["crop"]) / 2) for side in size)
    return np.array(image.crop((left, top, left + how["crop"], top + how["crop"])))


@functools.cache
def prepared_all(paths: tuple[str, ...], how: str) -> np.ndarray:
    """Prepare some images at once; the same ones of several exports only once."""
    return np.stack([prepared(Path(path), json.loads(how)) for path in paths])


def opened(name: str, place: Path) -> tuple[dict[str, Any], Any]:
    """Return the metadata of an export, and the network as a function; by nothing of featurecache."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(place)
        about = json.loads(session.get_modelmeta().custom_metadata_map["featurecache"])
        return about, lambda batch: session.run([about["output"]["name"]], {about["input"]["name"]: batch})[0]
    if name == "openvino":
        import openvino

        model = openvino.Core().read_model(place / "model.xml")
        about = json.loads(model.get_rt_info("featurecache").astype(str))
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return about, lambda batch: compiled({about["input"]["name"]: batch})[about["output"]["name"]]
    if name == "torch":
        extra = {"featurecache.json": ""}
        module = torch.export.load(io.BytesIO(place.read_bytes()), extra_files=extra).module()
        return json.loads(extra["featurecache.json"]), lambda batch: module(torch.from_numpy(batch)).detach().numpy()
    return json.loads((place / "config.json").read_text()), by_hand(place)


def by_hand(place: Path) -> Any:
    """Read the weights as their description says: the backbone is the test's own, the head is arithmetic."""
    import tiny_backbones
    from safetensors.numpy import load_file

    arrays, about = load_file(place / "model.safetensors"), json.loads((place / "config.json").read_text())
    network = tiny_backbones.other_seed()
    network.fc = torch.nn.Identity()
    own = {name.removeprefix("backbone."): torch.from_numpy(a) for name, a in arrays.items() if "backbone." in name}
    network.eval().load_state_dict(own)
    how = about["preprocess"]

    def answers(batch: np.ndarray) -> np.ndarray:
        images = (batch / 255 - how["mean"]) / how["std"]
        with torch.no_grad():
            x = network(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
        x = x.astype(about["features_rounded_to"]).astype(np.float32)
        for layer in about["head_layers"]:
            x = applied(layer["layer"], x, {name.rpartition(".")[2]: arrays[name] for name in layer["arrays"]})
        return x

    return answers


def applied(layer: str, x: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    if layer == "Linear":
        return x @ arrays["weight"] + arrays["bias"]
    if layer == "Rectify":
        return np.maximum(x, 0)
    if layer == "UnitLength":
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    if layer == "Neighbours":
        similarity = x @ arrays["directions"].T
        nearest = similarity.argsort(axis=1)[:, -int(arrays["count"]) :]
        weights = softmax(np.take_along_axis(similarity, nearest, axis=1) / arrays["temperature"])
        return np.einsum("bn,bnk->bk", weights, arrays["says"][nearest])
    if layer == "Logarithm":
        return np.log(np.maximum(x, arrays["least"]))
    assert layer == "Softmax"
    return softmax(x / arrays["temperature"])


# Exports take seconds each: every format and every kind of head always, all pairs of them with -m slow.
EXPORTED = [("onnx", "knn"), ("openvino", "mlp"), ("torch", "logistic"), *(("safetensors", head) for head in HEADS)]
OTHER_EXPORTS = [(name, head) for name in FORMATS for head in HEADS if (name, head) not in EXPORTED]


@pytest.mark.parametrize(
    ("name", "head"), [*EXPORTED, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHER_EXPORTS)]
)
def test_it_says_what_predict_says(
    heads: dict[str, Path], predicted: dict[str, list[Any]], tmp_path: Path, name: str, head: str
) -> None:
    for package in FORMATS[name].packages:
        need(package)
    said = export_head(heads[head], tmp_path / "out", format=name, backbone=TINY)
    assert said["largest_difference"] < 1e-5
    about, answers = opened(name, tmp_path / "out")
    assert about.get("opset") == (20 if name == "onnx" else None)
    assert about == {**about, **{key: value for key, value in said.items() if key in about}}
    assert (about["classes"], about["kind"], about["head"]) == (["global", "local", "nominal"], "classification", head)
    found = predicted[head]
    batch = prepared_all(tuple(prediction.path for prediction in found), json.dumps(about["preprocess"]))
    expected = np.array([list(prediction.probabilities.values()) for prediction in found])
    for size in (1, 4):  # the last ones are of no class that the first ones are
        batches = [batch[start : start + size] for start in range(0, len(batch) - size + 1, size)]
        np.testing.assert_allclose(
            np.concatenate([answers(each) for each in batches[:5]]), expected[: 5 * size], atol=1e-4
        )
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("shape", [(2800, 2100), (1100, 700), (640, 333), (41, 57)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_says_how_images_are_prepared(tmp_path: Path, shape: tuple[int, int], orientation: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(coarse).resize(shape).save(tmp_path / "a.jpg", exif=exif)
    for spec in (PreprocessSpec(), PreprocessSpec(resize=37, crop=32, interpolation="bicubic", jpeg_decoding="full")):
        how = export_module._preprocess(spec, None)["preprocess"]
        assert how["jpeg_draft"] == (512 if spec.resize == 256 else None)
        np.testing.assert_array_equal(
            prepared(tmp_path / "a.jpg", how), load_image((tmp_path / "a.jpg").read_bytes(), spec)
        )


def test_texts_of_any_length(tmp_path: Path) -> None:
    need("onnxruntime")
    encoder = f"hf:{write_encoder(tmp_path / 'encoder')}"
    texts = [*some_texts(38), "the red old cat is in the house and the dog is in the garden", "a bird"]
    table = write_table(tmp_path / "a.csv", texts, kind=["animal" if i % 2 else "place" for i in range(40)])
    run = ["run", str(table), "--cache", str(tmp_path / "c"), "--backbone", encoder, "--text-column", "text"]
    assert main([*run, "--label-column", "kind", "--head", "logistic", "--runtime", "torch"]) == 0
    head = tmp_path / "c" / "heads" / "run"
    export_head(head, tmp_path / "a.onnx", backbone=encoder)
    about, answers = opened("onnx", tmp_path / "a.onnx")
    assert about["input"] == {"name": "texts", "dtype": "int32", "shape": ["batch", MAX_TOKENS]}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(about["preprocess"]["tokenizer_json"])
    tokenizer.no_padding()
    tokenizer.enable_truncation(about["preprocess"]["max_tokens"])
    batch = np.full((40, MAX_TOKENS), -1, np.int32)
    for row, text in zip(batch, texts, strict=True):
        ids = tokenizer.encode(text).ids
        row[: len(ids)] = ids
    lengths = (batch >= 0).sum(axis=1)
    assert lengths.max() == MAX_TOKENS > lengths.min()
    expected = [list(p.probabilities.values()) for p in fc.predict(head, [table], backbone=encoder, text_column="text")]
    np.testing.assert_allclose(answers(batch), expected, atol=1e-4)
    full = batch[lengths == MAX_TOKENS]
    np.testing.assert_allclose(answers(full), np.array(expected)[lengths == MAX_TOKENS], atol=1e-4)


@pytest.fixture
def colours(tmp_path: Path) -> fc.FeatureStore:
    """A cache of generated images with all kinds of tasks, from a layer in the middle."""
    for number, (label, colour) in enumerate(COLOURS.items()):
        for i in range(8):
            write_image(tmp_path / "photos" / label / f"{i}.png", colour, seed=100 * number + i)
    return fc.extract(tmp_path / "photos", tmp_path / "cache", backbone=TINY, taps=["stem:avg"], settings=SETTINGS)


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_labels_and_numbers(colours: fc.FeatureStore, tmp_path: Path, kind: Any) -> None:
    rows = ["path,warm,light", *(f"{c}/{i}.png,{int(c == 'red')},{i % 2}" for c in COLOURS for i in range(8))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    labels = fc.labels_from_csv(tmp_path / "labels.csv", label_column=["warm", "light"], kind=kind)
    task = colours.add_task("some", labels)
    report = fc.train_heads(colours, task, colours.feature_sets(), ["ridge"], n_jobs=1)
    head = keep_head(colours, "some", report.best)
    export_head(head, tmp_path / "out", format="torch", backbone=TINY)
    about, answers = opened("torch", tmp_path / "out")
    assert (about["kind"], about["classes"]) == (kind, task.classes)
    assert about["output"]["name"] == ("numbers" if kind == "regression" else "probabilities")
    found = list(fc.predict(head, [tmp_path / "photos"], backbone=TINY, settings=SETTINGS))
    batch = np.stack([prepared(Path(prediction.path), about["preprocess"]) for prediction in found])
    expected = [list((p.numbers or p.probabilities).values()) for p in found]
    np.testing.assert_allclose(answers(batch), expected, atol=1e-4)


def test_layers_after_the_tap_stay_behind(colours: fc.FeatureStore, tmp_path: Path) -> None:
    task = colours.add_task("colour", fc.labels_from_folders())
    report = fc.train_heads(colours, task, colours.feature_sets(), ["logistic"], n_jobs=1)
    head = keep_head(colours, "early", report.best)
    for name in ("safetensors", "torch"):
        export_head(head, tmp_path / name, format=name, backbone=TINY)
    from safetensors.numpy import load_file

    kept = {name for name in load_file(tmp_path / "safetensors" / "model.safetensors") if name.startswith("backbone.")}
    assert kept == {f"backbone.stem.{name}" for name in ("0.weight", "0.bias", *(f"1.{n}" for n in NORM))}
    program = torch.export.load(io.BytesIO((tmp_path / "torch").read_bytes()))
    assert not [name for name in program.state_dict if "body" in name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_that_of_the_stored_type(dtype: str) -> None:
    digits = np.random.default_rng(0).normal(size=20_000)
    powers = np.exp2(np.random.default_rng(1).uniform(-30, 15, 20_000))
    x = torch.from_numpy((digits * powers).clip(-65504, 65504).astype(np.float32))
    x = torch.cat([x, torch.tensor([0.0, 1.0, -2.0, 2**-14, 3 * 2**-25, 65504.0, 1 + 2**-11, 1 + 3 * 2**-11])])
    expected = x.to(getattr(torch, dtype)).float()
    torch.testing.assert_close(round_as(x, dtype), expected, rtol=0, atol=0)


NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize(("name", "kept"), [("torch", []), ("safetensors", ["config.json", "model.safetensors"])])
def test_what_is_there_is_replaced_only_when_asked(
    heads: dict[str, Path], tmp_path: Path, name: str, kept: list[str]
) -> None:
    out = tmp_path / "out"
    export_head(heads["logistic"], out, format=name, backbone=TINY)
    with pytest.raises(RequestError, match="out is there already; pass --replace, or name another place"):
        export_head(heads["mlp"], out, format=name, backbone=TINY)
    assert opened(name, out)[0]["head"] == "logistic"
    export_head(heads["mlp"], out, format=name, backbone=TINY, replace=True)
    assert opened(name, out)[0]["head"] == "mlp"
    assert list(tmp_path.iterdir()) == [out]
    assert sorted(path.name for path in out.glob("*")) == kept


def test_places_that_cannot_be_are_refused_before_any_work(heads: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("not to be lost")
    (tmp_path / "file").write_text("neither")
    for out, name, message in (
        ("no/a.pt2", "torch", "there is no folder .*no; make it, or name another place"),
        ("folder", "torch", "folder is a folder; name a file"),
        ("file", "safetensors", "file is a file; name a folder"),
        ("folder", "safetensors", "folder holds 'thesis.txt', which is no part of such an export"),
    ):
        with pytest.raises(RequestError, match=message):
            export_head("no such head", tmp_path / out, format=name, replace=True)
    with pytest.raises(UnknownNameError, match="unknown export format 'onx'; did you mean 'onnx'"):
        export_head("no such head", tmp_path / "a", format="onx")
    assert (tmp_path / "folder" / "thesis.txt").exists()


def test_missing_packages_are_named(heads: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"onnx is not installed; .*pip install 'onnx>=.*onnxruntime>="):
        export_head(heads["logistic"], tmp_path / "a.onnx", backbone=TINY)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed; .*pip install 'openvino>="):
        export_head(heads["logistic"], tmp_path / "a", format="openvino", backbone=TINY)


def test_heads_that_say_something_else_of_an_input_are_refused(changed: Any, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match="changed was evaluated on the mean over views of each image, .* without --tta"
    ):
        export_head(changed(judged_on="views"), tmp_path / "a", format="torch", backbone=TINY)
    identity = load_head(changed())[1]["identity"]
    half = changed(identity={**identity, "precision": "bfloat16"})
    with pytest.raises(RequestError, match="features computed in bfloat16, .* extract with --precision float32"):
        export_head(half, tmp_path / "a", format="torch", backbone=TINY)
    rng = np.random.default_rng(0)
    other = LogisticRegression().fit(rng.normal(size=(30, 16)), np.arange(30) % 3)
    with pytest.raises(HeadError, match="a LogisticRegression cannot be saved: it states no arrays"):
        export_head(changed(other), tmp_path / "a", format="torch", backbone=TINY)
    assert not (tmp_path / "a").exists()


def test_a_head_on_views_says_what_it_says_of_a_plain_image(tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", 6)
    store = fc.extract(photos, tmp_path / "cache", backbone=TINY, views=ViewSpec(count=2), settings=SETTINGS)
    task = store.add_task("kind", fc.labels_from_folders())
    head = keep_head(store, "a", fc.train_heads(store, task, [store.find(views=2)], ["logistic"], n_jobs=1).best)
    export_head(head, tmp_path / "a", format="torch", backbone=TINY)
    about, answers = opened("torch", tmp_path / "a")
    (file, *_) = sorted(photos.rglob("*.jpg"))
    (plain,) = fc.predict(head, [file], backbone=TINY, settings=SETTINGS)
    found = answers(prepared(file, about["preprocess"])[None])[0]
    np.testing.assert_allclose(found, list(plain.probabilities.values()), atol=1e-4)


def head_on(factory: str, tmp_path: Path) -> tuple[Path, str]:
    backbone = f"python:tiny_backbones:{factory}"
    photos = photographs(tmp_path / "photos", 6)
    settings = ExtractionSettings(runtime="torch", batch_size=4, dtype="float32")
    store = fc.extract(photos, tmp_path / "cache", backbone=backbone, settings=settings)
    task = store.add_task("kind", fc.labels_from_folders())
    return keep_head(store, "a", fc.train_heads(store, task, store.feature_sets(), ["knn"], n_jobs=1).best), backbone


def test_a_network_that_looks_at_its_numbers_is_refused_with_the_reason(tmp_path: Path) -> None:
    head, backbone = head_on("looking", tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        BackboneError, match=r"tiny_backbones:looking cannot be exported, torch.export says: Could not guard on data-"
    ):
        export_head(head, tmp_path / "out" / "a", format="torch", backbone=backbone)
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_says_something_else_is_not_kept(tmp_path: Path) -> None:
    head, backbone = head_on("two_faced", tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("torch", "openvino"):
        with pytest.raises(RuntimeMismatchError, match=rf"a is not kept: as {name}, .* differently than here, by \d"):
            export_head(head, tmp_path / "out" / "a", format=name, backbone=backbone)
        assert not list((tmp_path / "out").iterdir())


def test_a_writer_that_fails_leaves_what_was_there(heads: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_head(heads["logistic"], out, format="safetensors", backbone=TINY)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        from featurecache.deployment.exporting import weights_folder

        patch.setattr(weights_folder, "_CONFIG", "no folder/config.json")
        with pytest.raises(RuntimeMismatchError, match=r"cannot be written as safetensors \(FileNotFoundError: "):
            export_head(heads["mlp"], out, format="safetensors", backbone=TINY, replace=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_other_features_here_are_refused(changed: Any, tmp_path: Path) -> None:
    probe = load_head(changed())[1]["probe"]
    features = {tap: (np.array(values) + 0.5).tolist() for tap, values in probe["features"].items()}
    with pytest.raises(DriftError, match="this machine makes other numbers"):
        export_head(changed(probe={**probe, "features": features}), tmp_path / "a", format="torch", backbone=TINY)


def test_features_too_large_for_the_type_are_refused(tmp_path: Path) -> None:
    head, backbone = head_on("overflowing", tmp_path)
    estimator, meta = load_head(head)[:2]
    save_head(head, estimator, {**meta, "dtype": "float16"})
    with pytest.raises(InputError, match="exceeds the range of float16; use --dtype float32"):
        export_head(head, tmp_path / "a", format="torch", backbone=backbone)


def test_the_command_line(heads: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "a.pt2")
    command = ["export", str(heads["mlp"]), "--out", out, "--format", "torch", "--backbone", TINY]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["out"], said["export_format"], said["tap"]) == (out, "torch", "pre_logits:none")
    assert main(command) == 2
    assert "is there already; pass --replace" in capsys.readouterr().err
    assert main([*command, "--replace"]) == 0
    printed = capsys.readouterr().out
    assert "input: images, uint8 (batch, 32, 32, 3)\noutput: probabilities, float32 (batch, 3)\n" in printed


@pytest.mark.parametrize(
    ("name", "format", "named"),
    [("x.pt2", "onnx", "torch"), ("x.onnx", "torch", "onnx"), ("x.xml", "torch", "openvino")],
)
def test_a_name_of_another_format_is_refused_before_any_work(tmp_path, name, format, named):
    with pytest.raises(RequestError, match=f"{name} is named like {named}, and the format is {format}; pass --format"):
        export_head(tmp_path / "no head", tmp_path / name, format=format)


def as_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 200)


def as_palette(image: Image.Image) -> Image.Image:
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = 3
    return palette


def with_alpha(image: Image.Image) -> Image.Image:
    layer = image.copy()
    layer.putalpha(image.convert("L"))
    return layer


KINDS: dict[str, Any] = {
    "plain": ("png", lambda image: image),
    "transparent": ("png", with_alpha),
    "transparent WebP": ("webp", with_alpha),
    "palette": ("png", as_palette),
    "GIF": ("gif", as_palette),
    "16 bits": ("png", as_16_bits),
    "16 bits TIFF": ("tiff", as_16_bits),
    "floating point": ("tiff", lambda image: Image.fromarray(np.asarray(image.convert("L"), np.float32) * 1.5)),
    "grey": ("jpeg", lambda image: image.convert("L")),
    "grey with alpha": ("png", lambda image: with_alpha(image).convert("LA")),
    "one bit": ("png", lambda image: image.convert("1")),
    "CMYK": ("jpeg", lambda image: image.convert("CMYK")),
    "large": ("jpeg", lambda image: image.resize((1203, 907), Image.Resampling.BICUBIC)),
}
HOW: dict[str, Any] = {
    "usual": {},
    "another background": {"background": (10, 200, 30), "interpolation": "bicubic"},
    "squash": {"resize": (70, 80), "crop": (64, 72), "resize_mode": "squash", "crop_rounding": "down"},
    "fit": {"resize_mode": "longest", "padding": "center", "fill_color": (9, 8, 7), "resize_rounding": "nearest"},
    "corner": {"resize_mode": "longest", "padding": "corner", "resize": 70, "crop": 64},
    "no filter": {"antialias": False, "orientation": "stored"},
    "range of the image": {"range": "image", "channel_order": "bgr"},
    "range": {"range": (100, 30000)},
    "trimmed": {"trim_margin": True, "resize_mode": "squash"},
    "resized twice": {"first_resize": 91, "first_interpolation": "bicubic", "resize_rounding": "nearest"},
    "cropped first": {"crop_first": True, "resize": (73, 81), "crop": (64, 70), "crop_rounding": "down"},
    "corners": {"alignment": "corners", "antialias": False},
    "trimmed and cropped first": {"trim_margin": True, "first_resize": 120, "crop_first": True, "antialias": False},
}


COLOURING = ("usual", "another background", "range", "range of the image")
"""Ways whose colours depend on the kind of file; the others only measure and move pixels."""


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in KINDS for how in HOW if how in COLOURING or kind in ("plain", "large", "palette")],
)
def test_the_script_that_is_published_prepares_images_as_the_product_does(kind: str, how: str, tmp_path: Path) -> None:
    suffix, change = KINDS[kind]
    colours = np.random.default_rng(4).integers(0, 256, (9, 12, 3), np.uint8)
    image = change(Image.fromarray(colours).resize((203, 151), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if suffix == "gif" else {"exif": exif}
    image.save(tmp_path / f"any.{suffix}", **options)
    spec = PreprocessSpec(**{"resize": 73, "crop": 64, **HOW[how]})
    published = json.loads(json.dumps(export_module._preprocess(spec, None)))
    namespace: dict[str, Any] = {}
    exec(compile(published["prepare_images"], "prepare_images.py", "exec"), namespace)
    found = namespace["prepare"](tmp_path / f"any.{suffix}", published["preprocess"])
    expected = load_image((tmp_path / f"any.{suffix}").read_bytes(), spec)
    assert np.array_equal(found, expected)


def test_the_opset_is_said_and_can_be_chosen_where_the_network_converts(
    heads: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("onnxscript")
    import onnx

    head = ["export", str(heads["logistic"]), "--backbone", TINY]
    assert main([*head, "--out", str(tmp_path / "other.onnx"), "--opset", "18"]) == 0
    assert "onnx (opset 18)" in capsys.readouterr().out
    assert [o.version for o in onnx.load(tmp_path / "other.onnx").opset_import if not o.domain] == [18]
    capsys.readouterr()
    assert main([*head, "--out", str(tmp_path / "none.onnx"), "--opset", "3"]) == 2
    assert not (tmp_path / "none.onnx").exists()
    assert "--opset 3" in capsys.readouterr().err
    assert main([*head, "--out", str(tmp_path / "any.pt2"), "--format", "torch", "--opset", "18"]) == 2
    assert "leave --opset out" in capsys.readouterr().err
