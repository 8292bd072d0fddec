"""In a notebook objects show themselves in a few lines, and one name stands where several may."""

from __future__ import annotations

import linecache
import subprocess
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


def test_a_training_draws_itself(done: fc.RunReport, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    report = done.training
    axes = report.plot()
    heads = [head.result.head for head in report.heads]
    assert [label.get_text() for label in axes.get_yticklabels()] == heads
    marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in marks] == [head.result.selection_score for head in report.heads]
    assert "95 % interval" in axes.get_xlabel()
    own = Figure().add_subplot()
    assert report.plot(own) is own
    assert done.plot(own) is own
    mpl.pyplot.close("all")


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


def _failing(code: str, name: str) -> list[str]:
    """Return what a notebook shows of an error in a cell."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    with pytest.raises(RequestError) as caught:
        exec(compile(code, name, "exec"), {"fc": fc})
    error = caught.value
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)._render_traceback_()  # without this test's own line


def test_an_error_is_the_lines_of_the_caller_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def mine():\n    fc.set_verbosity('loud')\n\n\nmine()\n"
    last = "RequestError: verbosity is auto, silent or progress; got 'loud'"
    for name in ("<ipython-input-3>", "/tmp/ipykernel_77/123.py"):
        assert _failing(code, name) == [
            "line 5 of this cell: mine()",
            "line 2 of this cell: fc.set_verbosity('loud')",
            last,
        ]
    assert _failing(code, "/home/me/study.py")[0] == "line 5 of study.py: mine()"
    assert RequestError("a\x1b[31m\nb")._render_traceback_() == ["RequestError: a\\x1b[31m\\nb"]
    verbose = SimpleNamespace(InteractiveTB=SimpleNamespace(mode="Verbose"))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: verbose))  # type: ignore[arg-type]
    shown = _failing(code, "<ipython-input-3>")
    assert shown[0].startswith("Traceback")
    assert any("progress.py" in line for line in shown)


def test_type_checkers_see_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import featurecache\n\nfeaturecache.extract\n")
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--cache-dir", str(tmp_path / "types"), "mine.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Success" in checked.stdout, checked.stdout
