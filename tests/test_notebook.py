"""In a notebook objects show themselves in a few lines, and one name stands where several may."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import COLOURS, TINY, write_image

import featurecache as fc
from featurecache.display import MAX_ROWS, html_table
from featurecache.errors import RequestError
from featurecache.specs import ExtractionSettings
from featurecache.train import TrainingSettings

pytestmark = pytest.mark.usefixtures("few_settings")
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> fc.RunReport:
    folder = tmp_path_factory.mktemp("notebook")
    for number, (label, colour) in enumerate(COLOURS.items()):
        for index in range(10):
            write_image(folder / "photos" / f"<b>{label}" / f"{index}.png", colour, seed=100 * number + index)
    return fc.run(
        folder / "photos",
        cache=folder / "c",
        backbone=TINY,
        taps="default",
        settings=SETTINGS,
        training=TrainingSettings(heads="nearest_mean"),
    )


def test_every_public_object_is_a_few_lines(done: fc.RunReport) -> None:
    store = done.extraction.store
    task, (feature_set,) = store.task("run"), store.feature_sets()
    objects = [done, done.extraction, done.training, done.training.best, store, task, feature_set, store.features()]
    for shown in [*objects, *done.advice]:
        text = repr(shown)
        assert len(text.splitlines()) <= 10
        assert len(text) < 2500
        assert "array(" not in text
    assert "3 classes" in repr(task)
    assert "nearest_mean" in repr(done.training)


def test_tables_of_notebooks_escape_what_strangers_wrote(done: fc.RunReport) -> None:
    for shown in (done, done.training, done.extraction.store, done.training.task):
        html = shown._repr_html_()
        assert html.count("<table>") == 1
        assert "<b>" not in html
    assert "&lt;b&gt;red" in done.training.task._repr_html_()
    many = html_table("t", ["a"], [[number] for number in range(MAX_ROWS + 5)])
    assert "and 5 more" in many


def test_one_name_is_not_its_letters(done: fc.RunReport) -> None:
    store = done.extraction.store
    (head,) = fc.train_heads(store, store.task("run"), store.feature_sets(), "ridge", n_jobs=1).heads
    assert head.result.head == "ridge"
    findings = fc.advise(store, "run", only="more_data")
    assert {finding.question for finding in findings} == {"more_data"}
    assert done.saved is not None
    photo = next(iter(Path(store.listings.all()[0].root).rglob("*.png")))
    assert len(list(fc.predict(done.saved, str(photo), backbone=TINY, settings=SETTINGS))) == 1
    assert len(list(fc.predict(done.saved, photo.parent, backbone=TINY, settings=SETTINGS))) == 10


def test_progress_is_drawn_in_notebooks_and_where_it_is_asked_for(
    done: fc.RunReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = done.extraction.store

    def drawn() -> bool:
        capsys.readouterr()
        fc.advise(store, "run", only="what")
        return "comparing features" in capsys.readouterr().out

    assert not drawn()
    try:
        fc.set_verbosity("progress")
        assert drawn()
        fc.set_verbosity("auto")
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
        assert drawn()
        fc.set_verbosity("silent")
        assert not drawn()
        with pytest.raises(RequestError, match="verbosity is auto, silent or progress; got 'loud'"):
            fc.set_verbosity("loud")
    finally:
        fc.set_verbosity("auto")
