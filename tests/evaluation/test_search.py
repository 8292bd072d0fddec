import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import searching_few_settings
from own_heads import Slow
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from featurecache.errors import HeadError, TaskError, UnknownNameError
from featurecache.evaluation import fit_progress, search, selection
from featurecache.evaluation.scores import evaluate
from featurecache.evaluation.search import evaluate_head, evaluate_heads
from featurecache.evaluation.selection import fold_numbers, known_classes
from featurecache.heads import fitting, registry
from featurecache.heads.fitting import fit_head
from featurecache.heads.gradient import stacked_training
from featurecache.heads.head import NamedHead
from featurecache.heads.probability import predict_proba
from featurecache.heads.registry import HEADS, find_head
from featurecache.machine import num_cores
from featurecache.progress import Silent


def _part(n, seed, *, d=8, n_classes=3, shift=0.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    X = rng.normal(size=(n, d)).astype(np.float32) * 1.5 + shift
    X[np.arange(n), y] += 3
    return X, y


def _parts(*names, **options):
    sizes = {"train": (60, 0), "validation": (30, 1), "test": (36, 2)}
    return {name: _part(*sizes[name], **options) for name in names}


ALL = ("train", "validation", "test")
# Five folds of a network on so few rows take seconds, and nothing in the protocol depends on the head.
QUICK = [name for name in HEADS if name != "mlp"]
CASES = [(name, ALL) for name in HEADS] + [(name, ("train", "test")) for name in QUICK]
FEW = ("logistic", "ridge", "knn")
"""With a path, with a temperature, and with neither."""


@pytest.fixture
def few():
    with searching_few_settings():
        yield


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("name", "names", "n_classes"),
    [(*case, 3) for case in CASES]
    + [(name, ALL, 2) for name in HEADS]
    + [(name, ("train", "validation"), 3) for name in FEW],
    ids=str,
)
def test_every_head_under_every_protocol(name, names, n_classes):
    parts = _parts(*names, n_classes=n_classes)
    result = evaluate_head(name, parts, n_classes + 1)
    assert result.protocol == ("validation" if names == ALL else "cross-validation")
    assert result.reported == names[-1]
    assert (result.test is None) == ("test" not in names)
    assert result.n_train == (90 if names == ALL else 60)
    assert result.validation.n == (30 if "validation" in names else 60)
    X, y = parts[result.reported]
    np.testing.assert_array_equal(result.y_pred, result.estimator.predict(X))
    np.testing.assert_array_equal(result.proba, predict_proba(result.estimator, X, result.temperature, n_classes + 1))
    np.testing.assert_allclose(result.proba.sum(axis=1), 1)
    np.testing.assert_array_equal(result.proba.argmax(axis=1), result.y_pred)
    assert (result.test or result.validation).accuracy == np.mean(result.y_pred == y)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    known = {"head", "params", "seconds", "protocol", "converged", "reported", "selection_accuracy", "selection_score"}
    known |= {"balanced", "metric", "threshold", "selection_log_loss", "kept"}
    assert set(document) == known | {"validation", "test"}
    assert result.converged


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("names", [ALL, ("train", "test")], ids="-".join)
def test_choice_never_sees_the_test_part(names):
    parts = _parts(*names)
    poisoned = parts | {"test": (parts["test"][0] * 50, np.roll(parts["test"][1], 1))}
    for name in FEW:
        honest, other = (evaluate_head(name, given, 3) for given in (parts, poisoned))
        assert honest.params == other.params
        assert honest.validation == other.validation
        assert honest.temperature == other.temperature


@pytest.mark.usefixtures("few")
def test_a_single_look_at_validation_without_test():
    parts = _parts("train", "validation")
    poisoned = parts | {"validation": (parts["validation"][0], np.roll(parts["validation"][1], 1))}
    for name in FEW:
        honest, other = (evaluate_head(name, given, 3) for given in (parts, poisoned))
        assert (honest.params, honest.temperature) == (other.params, other.temperature)
        assert honest.selection_accuracy == other.selection_accuracy
        np.testing.assert_array_equal(honest.y_pred, other.y_pred)


def test_standardisation_comes_from_the_fitted_rows():
    parts = _parts(*ALL)
    X_test, y_test = parts["test"]
    result = evaluate_head("nearest_mean", parts | {"test": (X_test + 100, y_test)}, 3)
    fitted = np.concatenate([parts["train"][0], parts["validation"][0]])
    np.testing.assert_allclose(result.estimator.mean_, fitted.mean(axis=0), rtol=1e-4, atol=1e-6)
    seen = []

    class Spy(DummyClassifier):
        def fit(self, X, y, sample_weight=None):
            seen.append(len(X))
            return super().fit(X, y, sample_weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        registry.register_head("spy", Spy, lambda n: [{}])
        evaluate_heads(["spy"], _parts("train", "test"), 3)
    assert seen == [48] * 5 + [60]


@pytest.mark.parametrize("names", [ALL, ("train", "test")])
def test_ties_go_to_the_surest(names):
    """Where every strength is right, the strongest says next to nothing: 0.5 of everything."""
    X = np.array([[-5.0], [5.0]] * 30)
    part = (X, np.array([0, 1] * 30))
    result = evaluate_head("logistic", dict.fromkeys(names, part), 2)
    assert result.params == {"standardize": True, "C": 10.0}
    assert result.test.accuracy == 1
    assert result.test.accuracy_low < 1
    assert result.proba.max(axis=1).min() > 0.9


def test_ties_go_to_the_simplest():
    """Margins are calibrated, so that one penalty is as sure as the other; but where they are too small for that."""
    X = np.array([[-5.0], [5.0]] * 30)
    result = evaluate_head("ridge", dict.fromkeys(ALL, (X, np.array([0, 1] * 30))), 2)
    assert result.params["standardize"] is True
    assert result.params["alpha"] >= 1e3


def _same(a, b):
    assert (a.head, a.params, a.validation, a.test) == (b.head, b.params, b.validation, b.test)
    np.testing.assert_array_equal(a.y_pred, b.y_pred)
    # Where in memory an array begins may decide the last digit of its sums, and a temperature is found by searching.
    np.testing.assert_allclose(a.proba, b.proba, rtol=1e-7, err_msg=a.head)


class Counting(Silent):
    count = 0

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.count += count


class Listening:
    """Keeps what is said; not `Silent`, for whom nothing is written."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, phase: str, total: int) -> None:
        pass

    def advance(self, count: int, *, bad: int = 0) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        pass


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_long_search_says_head_setting_and_time(n_jobs, monkeypatch):
    monkeypatch.setattr(search, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(fit_progress, "SECONDS_BETWEEN_READS", 0.05)
    heads = [NamedHead(name, Slow(), lambda n_samples: [{"seconds": 0.2}, {"seconds": 0.4}]) for name in ("slow", "sl")]
    listening = Listening()
    evaluate_heads(heads[:n_jobs], _parts(*ALL), 3, n_jobs=n_jobs, progress=listening)
    assert any(re.search(r"slow: setting 1 of 2, \d+ s", text) for text in listening.said)
    assert any(re.search(r"slow: setting 2 of 2, \d+ s", text) for text in listening.said)


@pytest.mark.usefixtures("few")
def test_results_do_not_depend_on_processes(monkeypatch, capfd):
    monkeypatch.setattr(stacked_training, "_MIN_STEPS", 300)  # as in the other processes
    monkeypatch.setattr(search, "WORTH_A_PROCESS", 0)
    parts, seen = _parts(*ALL, d=100), Counting()
    alone = evaluate_heads(HEADS, parts, 3, n_jobs=1)
    together = evaluate_heads(HEADS, parts, 3, n_jobs=2, progress=seen)
    assert seen.count == len(together)
    assert len(together) == len(HEADS)
    for a, b in zip(alone, together, strict=True):
        _same(a, b)
    others = [r.selection_accuracy for r in alone[1:]]
    assert others == sorted(others, reverse=True)
    assert "Warning" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["logistic", "linear_svm", "ridge"])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1, 1), (1, 20, 12, 2, 9, 1)], ids=["one label a class", "a long tail"])
def test_classes_of_a_single_sample_are_fitted_together_to_the_same_end(name, counts, monkeypatch):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    X, _ = _part(len(y), 0, d=12, n_classes=len(counts))
    X[np.arange(len(y)), y] += 2
    parts = {"train": (X, y), "test": _part(36, 2, d=12, n_classes=len(counts))}
    # A few settings of the grid, on folds that are not repeated: one by one, each takes as long as all together.
    monkeypatch.setattr(selection, "_MAX_REPEATS", 1)
    head = NamedHead(name, find_head(name).estimator, lambda n_samples: find_head(name).settings_for(n_samples)[::5])
    goes, answers = fitting.fits_together, []

    def asked(*arguments):
        answers.append(goes(*arguments))
        return answers[-1]

    monkeypatch.setattr(fitting, "fits_together", asked)
    found = evaluate_head(head, parts, len(counts))
    assert set(answers) == {True}
    monkeypatch.setattr(fitting, "fits_together", lambda *arguments: False)
    alone = evaluate_head(head, parts, len(counts))
    assert found.params == alone.params
    # A row in the balance may fall to either side.
    assert found.selection_score == pytest.approx(alone.selection_score, abs=1.5 / len(y))
    # A path ends each fit within the tolerance, and the temperature is of its decisions.
    np.testing.assert_allclose(found.proba, alone.proba, rtol=5e-3)
    np.testing.assert_array_equal(found.y_pred, alone.y_pred)
    seen = alone.validation.accuracy > 0  # else nothing told one class from another
    assert seen == (len(y) > len(counts))
    assert not seen or np.mean(found.selection_pred == alone.selection_pred) > 0.95


def test_an_error_in_a_process_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(search, "WORTH_A_PROCESS", 0)
    X, y = _part(40, 0)
    huge = (X.astype(np.float64) * 1e307, y)
    with pytest.raises(HeadError, match=r"head '\w+' cannot be fitted on 40 rows of 8 features in 3 classes"):
        evaluate_heads(["ridge", "linear_svm"], dict.fromkeys(ALL, huge), 3, n_jobs=2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("y", [[0, 1], [0, 0, 1], [0, 1, 2], [0, 0, 0, 1, 1, 2]], ids=str)
@pytest.mark.parametrize(("name", "names"), CASES, ids=str)
def test_tiny_training_parts(name, y, names):
    X = np.random.default_rng(0).normal(size=(len(y), 4)).astype(np.float32)
    X[:, 2] = 7
    # Where a fold lacks a class, settings are fitted one by one: some of them will do.
    result = evaluate_head(name, {part: (X, np.array(y)) for part in names}, 3)
    assert np.isfinite(result.proba).all()
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize("counts", [(9, 9), (9, 3), (9, 1), (3, 2, 2), (30, 1, 1, 2), (1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("num_views", [1, 3])
def test_no_fold_holds_out_a_whole_class(counts, num_views):
    """A class of one sample, or of one group, is fitted on and never held out, unless there are no others."""
    y = np.repeat(np.repeat(np.arange(len(counts)), counts), num_views)
    groups = None if num_views == 1 else np.repeat(np.arange(sum(counts)), num_views)
    fold = fold_numbers(y, groups, random_state=0)
    held_out = fold >= 0
    assert set(fold[held_out]) == set(range(min(5, max(counts) if max(counts) > 1 else len(counts))))
    if max(counts) == 1:
        assert held_out.all()
        assert known_classes(y, fold) == []
        return
    for label, count in enumerate(counts):
        of_class = y == label
        assert held_out[of_class].all() == (count > 1)
        assert count == 1 or len(set(fold[of_class])) == min(count, 5)
    for number in set(fold[held_out]):
        assert set(y[fold != number]) == set(y)
    assert groups is None or all(len(set(fold[groups == group])) == 1 for group in set(groups))


def _bad(change, names=ALL):
    parts = _parts(*names)
    change(parts)
    return parts


def _nan(parts):
    parts["test"][0][4, 2] = np.nan


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (_parts("train"), TaskError, "only train rows are given.*add a validation or test split"),
        (_parts("test"), TaskError, "there is no train split"),
        (
            _bad(lambda p: p.update(train=(p["train"][0], p["train"][1] * 0))),
            TaskError,
            "60 train rows are of class 0",
        ),
        (_bad(lambda p: p.update(test=(np.zeros((0, 8)), np.zeros(0, int)))), TaskError, "the test split has no rows"),
        (
            _bad(lambda p: p.update(test=(p["test"][0], p["test"][1] + 1))),
            TaskError,
            r"test labels are not class indices",
        ),
        (
            _bad(lambda p: p.update(test=(p["test"][0], p["test"][1][1:]))),
            TaskError,
            "test has 36 rows but labels of shape",
        ),
        (_bad(lambda p: p.update(tset=p["test"])), TaskError, "unknown split 'tset'"),
        (_bad(_nan), HeadError, "test features are not finite in 1 of 36 rows, first in row 4"),
        (_bad(lambda p: p.update(test=(p["test"][0][:, 1:], p["test"][1]))), HeadError, "differ between splits"),
        (_bad(lambda p: p.update(test=(p["test"][0][:, :, None], p["test"][1]))), HeadError, "pool the tap first"),
        (_bad(lambda p: p.update(test=(p["test"][0].astype(str), p["test"][1]))), HeadError, "heads need real numbers"),
    ],
)
def test_messages(parts, error, message):
    with pytest.raises(error, match=message) as caught:
        evaluate_heads(["ridge"], parts, 3)
    assert "\n" not in str(caught.value)


def test_unknown_head_before_any_work():
    with pytest.raises(UnknownNameError, match="unknown head 'rigde'"):
        evaluate_heads(["majority", "rigde"], {}, 3)


def test_an_absent_part_may_be_none():
    assert evaluate_head("ridge", {**_parts("train", "test"), "validation": None}, 3).protocol == "cross-validation"


@pytest.mark.parametrize("labels", [np.array(["ash", "elm", "oak"]), np.array([10, 20, 30]), np.array([True, False])])
def test_fit_and_evaluate_take_any_labels(labels):
    X, y = _part(60, 0, n_classes=len(labels))
    X_new, y_new = _part(30, 1, n_classes=len(labels))
    estimator = fit_head("logistic", X.astype(np.float16), labels[y], C=0.1)
    scores = evaluate(estimator, X_new, labels[y_new])
    assert scores.n == 30
    assert scores.accuracy == estimator.score(X_new, labels[y_new])
    assert estimator.C == 0.1


def test_fit_and_evaluate_messages():
    X, y = _part(10, 0)
    with pytest.raises(TaskError, match="10 rows have one label"):
        fit_head("logistic", X, y * 0)
    with pytest.raises(TaskError, match="give one label for each"):
        evaluate(LogisticRegression().fit(X, y), X, y[1:])
    with pytest.raises(HeadError, match="not finite in 10 of 10 rows"):
        fit_head("knn", X * np.nan, y)


def test_an_unconverged_head_is_reported_without_a_warning(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry.register_head("hasty", lambda: LogisticRegression(max_iter=1, tol=1e-12), lambda n: [{}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not evaluate_head("hasty", _parts(*ALL), 3).converged


@pytest.mark.skipif(num_cores() < 2, reason="there is one thread in any case")
def test_the_first_fit_of_a_process_is_held_to_one_thread_too():
    """torch is loaded late; a limit on threads that is set before that would not hold for it."""
    code = """
import sys
import numpy as np
from featurecache.evaluation.search import evaluate_head
from featurecache.heads.logistic import LogisticProbe

seen, fit = [], LogisticProbe.fit

def watch(self, *args, **options):
    found = fit(self, *args, **options)
    seen.append(sys.modules["torch"].get_num_threads())  # which the fit itself has loaded
    return found

LogisticProbe.fit = watch
assert "torch" not in sys.modules
X = np.random.default_rng(0).normal(size=(60, 5))
parts = {"train": (X, np.arange(60) % 2), "test": (X, np.arange(60) % 2)}
evaluate_head("logistic", parts, 2)
raise SystemExit(set(seen) != {1})
"""
    # Else there would be one thread without a limit too.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.parametrize(("n_jobs", "number"), [(1, signal.SIGINT), (2, signal.SIGKILL)])
def test_a_long_fit_ends_when_somebody_stops(n_jobs: int, number: int, tmp_path: Path) -> None:
    """A support vector machine of 40,000 rows takes minutes in compiled code; it must not outlive who asked for it."""
    code = f"""
import os, signal, threading, time
import numpy as np
from featurecache.evaluation.search import evaluate_heads

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def stop():
    busy = {{}}
    while max(busy, default=0) < 1.5:  # until some other process has computed for a while
        time.sleep(0.1)
        children = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
        try:
            stats = [open(f"/proc/{{each}}/stat").read().rpartition(")")[2].split() for each in children]
        except OSError:  # one has just ended
            continue
        busy = {{int(each[11]) / os.sysconf("SC_CLK_TCK"): child for each, child in zip(stats, children)}}
    os.write(1, f"{{busy[max(busy)]}} ".encode())
    os.kill(os.getpid(), {int(number)})

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40_000, 32)).astype(np.float32), rng.integers(0, 3, 40_000)
parts = {{"train": (X[:36_000], y[:36_000]), "test": (X[36_000:], y[36_000:])}}
threading.Thread(target=stop, daemon=True).start()
try:
    evaluate_heads(["rbf_svm"], parts, 3, n_jobs={n_jobs})
except KeyboardInterrupt:
    print("stopped")
"""
    with (tmp_path / "out").open("w") as out:  # no pipe: a process that was not asked yet may wait for a while
        done = subprocess.run([sys.executable, "-c", code], stdout=out, timeout=200, check=False)
    busy, *stopped = (tmp_path / "out").read_text().split()
    assert (done.returncode, stopped) == ((0, ["stopped"]) if number == signal.SIGINT else (-number, []))
    deadline = time.monotonic() + 60
    while Path(f"/proc/{busy}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{busy}").exists()
