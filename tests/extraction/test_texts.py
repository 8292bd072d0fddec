"""Texts take the same walk as images: one at a time or in padded batches, killed or not, the numbers are the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_texts
from conftest import TINY, need, write_image
from tiny_texts import ANIMALS, MAX_TOKENS, by_hand, shards, some_texts, write_encoder, write_pooling, write_table

import featurecache as fc
from featurecache.backbones.registry import load_backbone
from featurecache.cli import main
from featurecache.deployment.kept import keep_head
from featurecache.deployment.saved import open_head
from featurecache.errors import (
    BackboneError,
    BackboneMismatchError,
    DriftError,
    FeatureCacheError,
    RequestError,
    SourceError,
    TaskError,
)
from featurecache.extraction.deep_verification import verify_deep
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.recomputation import Inputs, recompute_set_aside
from featurecache.extraction.report import ExtractionReport
from featurecache.sources.opening import open_source
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.store.store import FeatureStore

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=8, dtype="float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("hub") / "tiny-bert")


def run(table: Path, cache: Path, encoder: Path, **options: Any) -> ExtractionReport:
    settings = replace(SETTINGS, **{k: options.pop(k) for k in ("num_workers", "runtime", "dtype") if k in options})
    request = make_request(f"hf:{encoder}", preprocess=options.pop("preprocess", None))
    return run_extraction(table, cache, request, text_column="text", settings=settings, **options)


def test_features_equal_a_loop_of_one_text_at_a_time(encoder: Path, tmp_path: Path) -> None:
    texts = some_texts(11)
    table = write_table(tmp_path / "t.csv", texts)
    poolings = ("mean", "cls", "max", "cls+mean", "avgmax", "gem", "none", "flatten")
    taps = [f"encoder.layer.1:{pooling}" for pooling in poolings]
    store = run(table, tmp_path / "c", encoder, taps=("default", *taps)).store
    listing = store.listings.load(open_source(table, text_column="text").key)
    assert listing is not None
    assert list(listing.paths[:2]) == ["row 000000001", "row 000000002"]
    features = {s.tap: s.open().read(listing.rows) for s in store.feature_sets()}
    for number, text in enumerate(texts):
        states = by_hand(encoder, text)
        padded = np.zeros((MAX_TOKENS, 16), np.float32)
        padded[: len(states)] = states
        mean, largest = states.mean(0), states.max(0)
        expected = {
            "pre_logits:mean": mean,
            "encoder.layer.1:mean": mean,
            "encoder.layer.1:cls": states[0],
            "encoder.layer.1:max": largest,
            "encoder.layer.1:cls+mean": np.concatenate([states[0], mean]),
            "encoder.layer.1:avgmax": np.concatenate([mean, largest]),
            "encoder.layer.1:gem": (states.clip(1e-6) ** 3).mean(0) ** (1 / 3),
            "encoder.layer.1:none": padded,
            "encoder.layer.1:flatten": padded.reshape(-1),
        }
        assert set(expected) == set(features)
        for tap, values in expected.items():
            np.testing.assert_allclose(features[tap][number], values, atol=1e-5, err_msg=f"{tap} of {text!r}")


def test_equal_texts_are_one_sample_and_an_edited_row_is_a_new_one(encoder: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", ["the cat", "a dog", "the cat", "The cat"])
    report = run(table, tmp_path / "c", encoder)
    assert (report.num_files, report.num_samples, report.num_extracted, report.noun) == (4, 3, 3, "row")
    assert report.store.samples.ids[0].tobytes() == sha256(b"the cat").digest()
    assert run(table, tmp_path / "c", encoder).num_extracted == 0
    write_table(table, ["the cat", "a bird", "the cat", "The cat", "a river"])
    report = run(table, tmp_path / "c", encoder)
    assert (report.num_files, report.num_samples, report.num_extracted) == (5, 4, 2)
    values = report.store.features()
    np.testing.assert_array_equal(values.shape, (5, 16))


def test_bytes_depend_on_neither_workers_nor_order_nor_resuming(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "t.csv", some_texts(30), key=[f"k{i:02d}" for i in range(30)])
    run(table, tmp_path / "one", encoder, id_column="key", num_workers=1)
    run(table, tmp_path / "four", encoder, id_column="key", num_workers=4)
    assert shards(tmp_path / "one") == shards(tmp_path / "four")
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join([lines[0], *reversed(lines[1:])]))
    run(table, tmp_path / "turned", encoder, id_column="key")
    assert shards(tmp_path / "one") == shards(tmp_path / "turned")

    from featurecache.extraction.worker import Worker

    publish, count = Worker._publish, iter(range(100))

    def killed(self: Worker, *job: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return publish(self, *job)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(table, tmp_path / "killed", encoder, id_column="key")
    assert 0 < len(shards(tmp_path / "killed")) < len(shards(tmp_path / "one"))
    run(table, tmp_path / "killed", encoder, id_column="key")
    assert shards(tmp_path / "killed") == shards(tmp_path / "one")


def test_bad_texts_have_a_status_and_long_ones_are_counted(encoder: Path, tmp_path: Path) -> None:
    long = "the old cat " * 9
    table = write_table(tmp_path / "t.csv", ["a cat", "", b"a \xff dog", " \t ", long, "x" * 101])
    report = run(table, tmp_path / "c", encoder, preprocess={"max_bytes": 100 + len(long) - 108})
    assert report.bad == {
        "row 000000002": ("empty", "the text has no bytes"),
        "row 000000003": ("undecodable", "byte 2 is no UTF-8"),
        "row 000000004": ("empty", "the tokenizer finds no token in 3 bytes"),
        "row 000000005": ("too_large", "the text has 108 bytes, the limit is 100"),
        "row 000000006": ("too_large", "the text has 101 bytes, the limit is 100"),
    }
    assert report.num_cut == 0
    for _ in range(2):  # also when everything is cached
        report = run(table, tmp_path / "c", encoder)
        assert (len(report.bad), report.num_cut) == (3, 1)
        assert report.to_json()["cut"] == 1
    row = report.store.samples.rows_of(np.frombuffer(sha256(long.encode()).digest(), np.uint8)[None])
    values = next(s for s in report.store.feature_sets() if s.identity.preprocess.max_bytes > 1000).open()
    np.testing.assert_allclose(values.read(row)[0], by_hand(encoder, long).mean(0), atol=1e-5)


def test_labels_join_by_the_text_and_predictions_equal_cached_answers(encoder: Path, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(some_texts(60)))
    about = ["animal" if any(word in text for word in ANIMALS) else "place" for text in texts]
    age = ["old" if "old" in text else "" if number == 0 else "new" for number, text in enumerate(texts)]
    table = write_table(tmp_path / "t.tsv", texts, about=about, age=age)
    store = run(table, tmp_path / "c", encoder).store
    task = store.add_task("about", fc.labels_from_csv(table, label_column="about", text_column="text"))
    aged = store.add_task("age", fc.labels_from_csv(table, label_column="age", text_column="text"))
    assert (len(task.ids), task.classes) == (len(texts), ["animal", "place"])
    assert len(aged.ids) == len(texts) - 1
    X, _ = task.select(store.features(), "train")
    assert X.shape == (task.counts()["train"], 16)
    report = fc.train_heads(store, task, store.feature_sets(), ["logistic"], n_jobs=1)
    folder = keep_head(store, "best", report.best)
    answers = list(fc.predict(folder, [table], text_column="text", backbone=f"hf:{encoder}", settings=SETTINGS))
    listing = store.listings.load(open_source(table, text_column="text").key)
    assert listing is not None
    expected = open_head(folder).probabilities(store.features().read(listing.rows).astype(np.float32))
    assert [answer.path for answer in answers] == list(listing.paths)
    for answer, row in zip(answers, expected, strict=True):
        assert answer.label == task.classes[int(row.argmax())]
        assert answer.probability == pytest.approx(row.max(), abs=1e-6)
    new = write_table(tmp_path / "new.csv", ["the dog", ""], key=["second", "first"])
    options = {"text_column": "text", "id_column": "key", "backbone": f"hf:{encoder}", "settings": SETTINGS}
    answers = list(fc.predict(folder, [new], **options))
    assert [(a.path, a.status) for a in answers] == [("second", "ok"), ("first", "empty")]
    with pytest.raises(RequestError, match="this head labels texts: name tables, and .* --text-column"):
        fc.predict(folder, [new], backbone=f"hf:{encoder}")


def test_labels_join_by_the_names_of_rows(encoder: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", some_texts(8), key=[f"k{i}" for i in range(8)])
    store = run(table, tmp_path / "c", encoder, id_column="key").store
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"k{i},{'ab'[i % 2]}\n" for i in reversed(range(8))))
    task = store.add_task("t", fc.labels_from_csv(labels))
    digests = [sha256(text.encode()).digest() for text in some_texts(8)]
    found = {i.tobytes(): task.classes[k] for i, k in zip(task.ids, task.labels, strict=True)}
    assert found == {digest: "ab"[i % 2] for i, digest in enumerate(digests)}
    labels.write_bytes(b"text,label\na,\xff\n")
    with pytest.raises(TaskError, match="line 2: the label is no plain text"):
        fc.labels_from_csv(labels, text_column="text")


def test_one_cache_holds_images_and_texts(encoder: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png", (1, 2, 3), seed=0)
    table = write_table(tmp_path / "t.csv", some_texts(3))
    run(table, tmp_path / "c", encoder)
    store = fc.extract(tmp_path / "photos", tmp_path / "c", backbone=TINY, settings=SETTINGS)
    assert [len(s.open()) for s in store.feature_sets()] == [3, 1]
    assert verify_deep(store, Inputs(source=tmp_path / "photos", backbone=TINY)).num_identical == 1
    found = verify_deep(store, Inputs(source=table, text_column="text", backbone=f"hf:{encoder}"))
    assert (found.num_rows, found.num_identical, found.problems) == (3, 3, [])


def test_two_labels_of_one_text_are_left_out_and_named(encoder: Path, tmp_path: Path) -> None:
    texts = [*some_texts(12), "the cat", "the cat"]
    table = write_table(tmp_path / "t.csv", texts, label=["a", "b"] * 7)
    store = run(table, tmp_path / "c", encoder).store
    task = store.add_task("t", fc.labels_from_csv(table, text_column="text"))
    assert task.about["conflicts"] == [{"row 000000013": "a", "row 000000014": "b"}]
    other = write_table(tmp_path / "other.csv", ["unheard", *texts[:4]], label=["a", "b", "a", "b", "a"])
    with pytest.raises(TaskError, match="1 of 5 labels is for inputs that are not .*, first 'row 000000001'"):
        store.add_task("other", fc.labels_from_csv(other, text_column="text"))


def test_deep_verification_and_repair_take_the_table(encoder: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [*some_texts(20), ""])
    store = run(table, tmp_path / "c", encoder).store
    inputs = Inputs(source=table, text_column="text", backbone=f"hf:{encoder}")
    found = verify_deep(store, inputs, random_state=0)
    assert (found.num_rows, found.num_identical, found.problems) == (21, 21, [])
    from featurecache.store.repair import repair

    whole = shards(tmp_path / "c")
    lost = next((tmp_path / "c" / "features").rglob("*.h5"))
    lost.write_bytes(lost.read_bytes()[:-1] + b"?")
    assert repair(store)
    assert recompute_set_aside(FeatureStore.open(store.path), inputs) == 8
    assert shards(tmp_path / "c") == whole
    with pytest.raises(SourceError, match="takes texts, and .* holds images; name a table and its --text-column"):
        verify_deep(store, Inputs(source=tmp_path, backbone=f"hf:{encoder}"))


@pytest.mark.parametrize("verb", ["verify", "info"])
def test_a_table_without_its_column_is_told_what_it_is(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    table = write_table(tmp_path / "t.csv", ["the cat", "a dog"])
    run(table, tmp_path / "c", encoder)
    words = [verb, str(tmp_path / "c"), *(["--deep"] if verb == "verify" else []), "--source"]
    assert main([*words, str(table)]) == 2
    said = capsys.readouterr().err
    assert "t.csv is a table with the columns " in said
    assert "name the one that holds the texts with --text-column" in said
    other = tmp_path / "t.txt"
    other.write_text("the cat")
    assert main([*words, str(other)]) == 2
    assert "t.txt is a file; name the folder that holds the images" in capsys.readouterr().err


def test_another_tokenizer_is_another_fingerprint_and_no_head_of_ours(encoder: Path, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(some_texts(40)))
    labels = ["animal" if any(word in text for word in ANIMALS) else "place" for text in texts]
    table = write_table(tmp_path / "t.csv", texts, label=labels)
    store = run(table, tmp_path / "c", encoder).store
    task = store.add_task("t", fc.labels_from_csv(table, text_column="text"))
    head = keep_head(store, "h", fc.train_heads(store, task, store.feature_sets(), ["ridge"], n_jobs=1).best)
    other = shutil.copytree(encoder, tmp_path / "tiny-bert")
    tiny_texts.write_tokenizer(other, tuple(reversed(tiny_texts.WORDS)))
    with pytest.raises(BackboneMismatchError, match="cannot be reproduced here: preprocess.tokenizer .* -> "):
        fc.predict(head, [table], text_column="text", backbone=f"hf:{other}")
    run(table, tmp_path / "c", other)
    assert len({s.fingerprint for s in store.feature_sets()}) == 2


def test_drift_names_the_stage_of_texts(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "t.csv", some_texts(6))
    run(table, tmp_path / "c", encoder)
    write_table(table, [*some_texts(6), "a new river"])
    from featurecache.sources.decoding.texts import Tokenizer

    real = Tokenizer.tokens_of

    def turned(self: Tokenizer, data: bytes) -> Any:
        tokens, cut = real(self, data)
        return np.where(tokens > 3, 4 + (tokens - 3) % 10, tokens).astype(np.int32), cut

    monkeypatch.setattr(Tokenizer, "tokens_of", turned)
    with pytest.raises(DriftError, match="the first stage that changed is: token ids"):
        run(table, tmp_path / "c", encoder)


@pytest.mark.parametrize(("mode", "tap"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max")])
def test_default_tap_pools_as_the_encoder_was_trained(encoder: Path, tmp_path: Path, mode: str, tap: str) -> None:
    folder = shutil.copytree(encoder, tmp_path / "e")
    write_pooling(folder, mode)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    table = write_table(tmp_path / "t.csv", some_texts(3))
    (features,) = run(table, tmp_path / "c", folder).sets
    assert features.tap == f"pre_logits:{tap}"
    assert features.identity.preprocess.max_tokens == 9


def test_the_same_texts_with_openvino(encoder: Path, tmp_path: Path) -> None:
    need("openvino")
    table = write_table(tmp_path / "t.csv", some_texts(10))
    reference = run(table, tmp_path / "torch", encoder).store.features()
    report = run(table, tmp_path / "openvino", encoder, runtime="openvino")
    assert report.runtime == "openvino"
    np.testing.assert_allclose(np.asarray(report.store.features()), np.asarray(reference), atol=1e-4)


def test_the_transformer_takes_texts(encoder: Path) -> None:
    texts = some_texts(5)
    features = fc.FrozenBackbone(f"hf:{encoder}", runtime="torch").fit(texts).transform(texts)
    np.testing.assert_allclose(features, [by_hand(encoder, text).mean(0) for text in texts], atol=1e-5)


BAD_REQUESTS = [
    ({"table": "none.csv"}, SourceError, "cannot read texts from .*none.csv: it does not exist"),
    ({"text_column": "txt"}, SourceError, "unknown column 'txt'; did you mean 'text'.*--text-column"),
    ({"id_column": "ids"}, SourceError, "unknown column 'ids'.*--id-column"),
    ({"id_column": "label"}, SourceError, "label 'a' names rows 1 and 2; give each row its own"),
    ({"content": b""}, SourceError, "it is empty; its first line names the columns"),
    ({"content": b"text\n"}, SourceError, "has a header but no rows"),
    ({"content": b"PK\x03\x04"}, SourceError, "it is no whole Excel file or archive"),
    ({"content": b"text,label\na,b,c\n"}, SourceError, "line 2 has more fields than the header"),
    ({"content": b"label,text\na\n"}, SourceError, "line 2 has fewer fields than the header"),
    ({"content": b"text,id\na,\n", "id_column": "id"}, SourceError, "line 2: the id is empty"),
    ({"content": b'text,id\n"a,b\nc,d\n'}, SourceError, "unexpected end of data; is a quote left open"),
    (
        {"text_column": None},
        SourceError,
        "t.csv is a table with the columns .*text.*--text-column",
    ),
    ({"text_column": None, "id_column": "label"}, RequestError, "--id-column label is for tables"),
    ({"preprocess": {"crop": 32}}, RequestError, "unknown preprocess setting 'crop'; for text inputs there are: max_t"),
    ({"preprocess": {"max_tokens": 2}}, RequestError, "2 tokens are no more than the 2 that the tokenizer adds"),
    ({"preprocess": {"max_tokens": 99}}, BackboneError, "rejects texts of 99 tokens: .*--max-tokens"),
    ({"backbone": TINY}, SourceError, "takes images, and .* holds texts; name a folder of images"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_REQUESTS, ids=[case[2][:30] for case in BAD_REQUESTS])
def test_a_bad_request_is_one_line(
    encoder: Path, tmp_path: Path, change: dict[str, Any], error: type[FeatureCacheError], message: str
) -> None:
    table = write_table(tmp_path / "t.csv", some_texts(3), label=["a", "a", "b"])
    if "content" in change:
        table.write_bytes(change["content"])
    options = {"text_column": "text", "id_column": None, **change}
    columns = {name: options[name] for name in ("text_column", "id_column")}
    request = make_request(options.get("backbone", f"hf:{encoder}"), preprocess=options.get("preprocess"))
    with pytest.raises(error, match=message) as caught:
        run_extraction(tmp_path / options.get("table", "t.csv"), tmp_path / "c", request, settings=SETTINGS, **columns)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c" / "features").exists()


def test_an_encoder_without_its_tokenizer_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "e")
    (folder / "tokenizer.json").write_text('{"version": "9"}')
    with pytest.raises(BackboneError, match=r"tokenizer.json that cannot be read"):
        load_backbone(BackboneRequest(name=f"hf:{folder}"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match=r"has no tokenizer.json; save it there with"):
        load_backbone(BackboneRequest(name=f"hf:{folder}"))


def test_random_weights_keep_the_tokenizer(encoder: Path) -> None:
    trained = load_backbone(BackboneRequest(name=f"hf:{encoder}"))
    untrained = load_backbone(BackboneRequest(name=f"hf:{encoder}", init="random", seed=5))
    assert untrained.identity.weights != trained.identity.weights
    assert untrained.identity.preprocess == trained.identity.preprocess
