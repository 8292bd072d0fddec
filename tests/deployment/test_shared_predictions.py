"""Several workers predict one table: it is that of one process, and a run that is killed goes on."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import active_children
from conftest import REPOSITORY, RUNTIME, TINY, write_folder, write_image
from tiny_texts import some_texts, write_encoder, write_table

import featurecache as fc
from featurecache.cli import main
from featurecache.cli.predict import parts_of
from featurecache.deployment.listed_inputs import list_inputs
from featurecache.deployment.part_files import PartDraft, read_part
from featurecache.deployment.parts import PartsGoneError
from featurecache.deployment.predict import make_job
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.prediction_job import part_size
from featurecache.deployment.predictor import RuntimeChoice
from featurecache.deployment.shared_run import SharedRun, run_shared
from featurecache.errors import CorruptError, ReportWarning, RequestError
from featurecache.extraction.engines.rank import rank_and_size
from featurecache.progress import Silent
from featurecache.specs import ExtractionSettings
from featurecache.store.image_warnings import RemarkCounter

Call = Callable[..., tuple[int, str, str]]
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=16, num_processes=2)
"""Many parts, the last of them short."""
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
    "OMP_NUM_THREADS": "1",
}
NUM_INPUTS = 602


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache whose heads are ``h`` and ``other``, and ``photos``: two of them bad, three unlike all."""
    root = tmp_path_factory.mktemp("shared")
    write_folder(root / "train", per_class=15)
    command = ["extract", str(root / "train"), "--cache", str(root / "c"), "--backbone", TINY, "--dtype", "float32"]
    assert main([*command, *RUNTIME]) == 0
    assert main(["task", "add", str(root / "c"), "colour", "--from-folders"]) == 0
    for name, head in (("h", "nearest_mean"), ("other", "ridge")):
        assert main(["train", str(root / "c"), "--task", "colour", "--head", head, "--save", name, "--quiet"]) == 0
    write_folder(root / "photos", per_class=199, seed=7)
    for number in range(3):
        write_image(root / "photos" / "green" / f"odd{number}.png", (255, 255, 0), seed=number)
    (root / "photos" / "blue" / "000b.jpg").write_bytes(b"")
    (root / "photos" / "red" / "100b.jpg").write_bytes(b"no image")
    # A name that is no UTF-8.
    (root / "photos" / "red" / "001.png").rename(root / "photos" / "red" / "001\udcff.png")
    # What was written just now has no stamp that says anything: its parts would be of its bytes, and then of its stamp.
    time.sleep(2.2)
    return root


def predict_command(made: Path, out: Path, *more: object) -> list[str]:
    words = ["predict", made / "c" / "heads" / "h", made / "photos", "--backbone", TINY, *RUNTIME, "--out", out, *more]
    return [str(word) for word in words]


@pytest.fixture
def alone(made: Path, tmp_path: Path, call: Call) -> Callable[..., tuple[int, str, str, bytes]]:
    """What one process says and writes."""

    def run(*more: object, suffix: str = ".csv") -> tuple[int, str, str, bytes]:
        (tmp_path / "alone").mkdir(exist_ok=True)
        out = tmp_path / "alone" / f"labels{suffix}"
        said = call(*predict_command(made, out, *more))
        return (*said, out.read_bytes())

    return run


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class Watching(Silent):
    """Notes what is to be predicted, and calls a function when the first was."""

    def __init__(self, meddle: Callable[[], None] = lambda: None) -> None:
        self.meddle, self.totals, self.has_meddled = meddle, list[int](), False

    def start(self, phase: str, total: int) -> None:
        if phase == "predicting":
            self.totals.append(total)

    def advance(self, count: int, *, bad: int = 0) -> None:
        if self.totals and not self.has_meddled:
            self.has_meddled = True
            self.meddle()


@pytest.mark.parametrize("engine", ["local", "processes", "ray"])
def test_the_table_is_that_of_one_process(
    engine: str, made: Path, tmp_path: Path, call: Call, alone: Callable[..., tuple[int, str, str, bytes]]
) -> None:
    if engine == "ray" and find_spec("ray") is None:
        pytest.skip("needs the extra ray")
    (tmp_path / "a").mkdir()
    status, out, err, table = alone("--outliers", "--proba")
    assert (status, table.count(b"\n")) == (1, NUM_INPUTS + 1)
    assert b"yes" in table
    found = call(*predict_command(made, tmp_path / "a" / "labels.csv", "--outliers", "--proba", "--engine", engine))
    assert found[0] == status
    assert found[1].replace("/a/", "/alone/") == out
    # Ray has words of its own, before ours.
    assert found[2] == err or (engine == "ray" and found[2].endswith(err))
    assert (tmp_path / "a" / "labels.csv").read_bytes() == table
    assert files_in(tmp_path / "a") == ["labels.csv"]


def test_parquet_and_tables_of_others_are_the_same(
    made: Path, tmp_path: Path, call: Call, alone: Callable[..., tuple[int, str, str, bytes]]
) -> None:
    from pyarrow import parquet

    alone(suffix=".parquet")
    out = tmp_path / "a.parquet"
    assert call(*predict_command(made, out, "--engine", "processes"))[0] == 1
    expected = parquet.read_table(tmp_path / "alone" / "labels.parquet")
    assert parquet.read_table(out).equals(expected)
    named = ("--columns", "path,label")
    assert call(*predict_command(made, tmp_path / "b.csv", *named, "--engine", "local"))[0] == 1
    assert (tmp_path / "b.csv").read_bytes() == alone(*named, "--replace")[3]


def ranks(command: list[str], *numbers: int, size: int = 2) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-m", "featurecache", *command, "--engine", "rank"],
            env={**ENVIRONMENT, "RANK": str(number), "WORLD_SIZE": str(size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def test_ranks_share_the_work_and_one_writes_the_table(
    made: Path, tmp_path: Path, alone: Callable[..., tuple[int, str, str, bytes]]
) -> None:
    (tmp_path / "a").mkdir()
    out = tmp_path / "a" / "labels.csv"
    said = [ended(process) for process in ranks(predict_command(made, out), 0, 1)]
    assert [status for status, _, _ in said] == [1, 1], said
    line = f"600 of {NUM_INPUTS} labelled, in {out}"
    assert sorted(text.splitlines()[0] for _, text, _ in said) == [line, f"{line}, by another process"]
    assert out.read_bytes() == alone()[3]
    assert files_in(tmp_path / "a") == ["labels.csv"]


def test_a_rank_that_comes_when_all_is_done_says_so(made: Path, tmp_path: Path) -> None:
    """As the tasks of a job array do, which may run one after the other."""
    (tmp_path / "a").mkdir()
    out = tmp_path / "a" / "labels.csv"
    (first,) = [ended(process) for process in ranks(predict_command(made, out), 0)]
    assert first[0] == 1, first
    written = out.read_bytes(), out.stat().st_mtime_ns
    assert ".labels.csv.parts/end.json" in files_in(tmp_path / "a")
    (second,) = [ended(process) for process in ranks(predict_command(made, out), 1)]
    assert second[0] == 1
    assert second[1] == first[1].replace("labels.csv\n", "labels.csv, by another process\n")
    assert second[2] == first[2]
    assert (out.read_bytes(), out.stat().st_mtime_ns) == written
    assert files_in(tmp_path / "a") == ["labels.csv"]
    # Now it is an earlier table.
    (third,) = [ended(process) for process in ranks(predict_command(made, out), 0)]
    assert third[0] == 2
    assert f"--out {out} is there already; pass --replace" in third[2]
    assert files_in(tmp_path / "a") == ["labels.csv"]


def shared(made: Path, out: Path, progress: Silent | None = None, **options: object) -> SharedRun:
    """Predict all parts by two processes, without joining them."""
    engine = str(options.pop("engine", "processes"))
    options = {"backbone": TINY, "settings": SETTINGS, "parts": parts_of(out), **options}
    head, photos = options.pop("head", made / "c" / "heads" / "h"), options.pop("photos", made / "photos")
    run = run_shared(make_job(head, photos, **options), engine, progress or Silent(), out=out)
    assert isinstance(run, SharedRun)
    return run


def rows_of(run: SharedRun) -> list[Prediction]:
    rows = list(run.predictions([]))
    run.close()
    return rows


@pytest.fixture
def expected(made: Path) -> list[Prediction]:
    settings = ExtractionSettings(runtime="torch", batch_size=4)
    return list(fc.predict(made / "c" / "heads" / "h", made / "photos", backbone=TINY, settings=settings))


def test_a_worker_that_is_killed_costs_nothing(made: Path, tmp_path: Path, expected: list[Prediction]) -> None:
    def kill_one() -> None:
        os.kill(active_children()[0].pid, signal.SIGKILL)

    watching = Watching(kill_one)
    run = shared(made, tmp_path / "t.csv", watching)
    assert watching.has_meddled
    assert max(watching.totals) == NUM_INPUTS
    assert active_children() == []
    assert rows_of(run) == expected
    assert len(list(parts_of(tmp_path / "t.csv").glob("part-*"))) == -(-NUM_INPUTS // 16)


KILLED = """
import os, signal, sys
from pathlib import Path
import featurecache as fc
head, photos, parts, tiny = sys.argv[1:]
settings = fc.ExtractionSettings(runtime="torch", batch_size=4, shard_rows=16, num_processes=2)

class Deadly(fc.progress.Silent):
    def advance(self, count, *, bad=0):
        if len(list(Path(parts).glob("part-*"))) >= 8:
            os.killpg(os.getpgid(0), signal.SIGKILL)

fc.predict(head, photos, backbone=tiny, settings=settings, engine="processes", parts=parts, progress=Deadly())
"""


@pytest.fixture
def killed(made: Path, tmp_path: Path) -> Path:
    """The table of a run whose processes were all killed when eight parts or more were there."""
    out = tmp_path / "t.csv"
    command = [sys.executable, "-c", "import featurecache.progress\n" + KILLED, made / "c" / "heads" / "h"]
    done = subprocess.run(
        [str(word) for word in [*command, made / "photos", parts_of(out), TINY]],
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert done.returncode == -signal.SIGKILL
    assert 8 <= len(parts_in(out)) < -(-NUM_INPUTS // 16)
    return out


def parts_in(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in parts_of(out).glob("part-*.gz")}


def test_a_run_that_was_killed_goes_on(made: Path, killed: Path, expected: list[Prediction]) -> None:
    before, watching = parts_in(killed), Watching()
    run = shared(made, killed, watching)
    # The last part is short, and may be one of those that were there.
    assert NUM_INPUTS - 16 * len(before) <= max(watching.totals) <= NUM_INPUTS - 16 * len(before) + 6
    assert before.items() <= parts_in(killed).items(), "they were not computed again"
    assert rows_of(run) == expected
    again = Watching()
    assert rows_of(shared(made, killed, again)) == expected
    assert again.totals == [], "nothing is left but to join them"


@pytest.mark.slow
def test_another_head_and_edited_inputs_share_nothing_with_what_was_there(
    made: Path, killed: Path, tmp_path: Path, expected: list[Prediction]
) -> None:
    photos, before = tmp_path / "photos", parts_in(killed)
    # Another head: no part of the first one will do.
    other = Watching()
    run = shared(made, killed, other, head=made / "c" / "heads" / "other")
    assert max(other.totals) == NUM_INPUTS
    assert [row.probability for row in rows_of(run)] != [row.probability for row in expected]
    # As with views, whose predictions are others.
    views = Watching()
    shared(made, killed, views, tta=2).close()
    assert max(views.totals) == NUM_INPUTS
    # An edited image, of its length and time: its own part alone.
    shutil.copytree(made / "photos", photos)
    time.sleep(2.2)
    first = rows_of(shared(made, killed, photos=photos))
    parts, edited, watching = parts_in(killed), photos / "green" / "050.png", Watching()
    shutil.copyfile(photos / "red" / "050.png", edited)
    second = rows_of(shared(made, killed, watching, photos=photos))
    assert max(watching.totals) == 16
    changed = [row.path for row, earlier in zip(second, first, strict=True) if row != earlier]
    assert changed == [str(edited)]
    assert next(row.label for row in second if row.path == str(edited)) == "red"
    assert len(parts_in(killed)) == len(parts) + 1
    assert before.items() <= parts_in(killed).items()
    # All of it goes with the table.
    run = shared(made, killed)
    assert rows_of(run) == expected
    run.job.folder.remove()
    assert not parts_of(killed).exists()


def test_rows_of_tables_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    from featurecache.deployment.listed_inputs import OpenedSource
    from featurecache.sources.opening import open_source

    def contents(*texts: str) -> np.ndarray:
        (tmp_path / "t.csv").write_text("body\n" + "".join(f"{text}\n" for text in texts))
        source = open_source(tmp_path / "t.csv", text_column="body")
        inputs, found, _ = list_inputs([OpenedSource(source, "")], with_contents=True)
        assert [item.name for item in inputs] == [f"row {number:09d}" for number in range(1, len(texts) + 1)]
        return found

    first, second = contents("one", "two", "two"), contents("one", "2", "two")
    assert (first == second).all(axis=1).tolist() == [True, False, True]
    assert (first[1] == first[2]).all()


@pytest.mark.slow
def test_views_and_texts_of_many_lengths_are_in_the_batches_of_one_piece(made: Path, tmp_path: Path) -> None:
    def both(head: Path, inputs: list[Path], **options: Any) -> tuple[list[Prediction], list[Prediction]]:
        folder = tmp_path / "parts"
        options = {"settings": ExtractionSettings(runtime="torch", batch_size=4, shard_rows=16), **options}
        predicted = list(fc.predict(head, inputs, **options)), list(fc.predict(head, inputs, **options, parts=folder))
        assert not folder.exists()
        return predicted

    alone, in_parts = both(made / "c" / "heads" / "h", [made / "train", made / "photos" / "red"], backbone=TINY, tta=3)
    assert len(alone) == 45 + 200
    assert in_parts == alone
    encoder = write_encoder(tmp_path / "tiny-bert", max_position_embeddings=64)
    # Of 3 to 66 tokens, and more than are sorted together; one is empty.
    texts = [text + " the" * (index * 37 % 61) for index, text in enumerate(some_texts(1100))]
    table = write_table(tmp_path / "t.csv", ["", *texts], kind=[str(len(text) % 2) for text in ["", *texts]])
    options = {"backbone": f"hf:{encoder}", "text_column": "text"}
    few = write_table(tmp_path / "few.csv", texts[:60], kind=[str(index % 2) for index in range(60)])
    machine = ["--runtime", "torch", "--batch-size", "8", "--quiet", "--head", "ridge", "--jobs", "1"]
    run = ["run", str(few), "--text-column", "text", "--label-column", "kind", "--cache", str(tmp_path / "c")]
    assert main([*run, "--backbone", f"hf:{encoder}", *machine]) == 0
    alone, in_parts = both(tmp_path / "c" / "heads" / "run", [table], **options)
    assert [item.status for item in alone[:2]] == ["empty", "ok"]
    assert len(alone) == 1101
    assert in_parts == alone


def test_a_run_without_parts_removes_those_of_one_that_was_killed(made: Path, killed: Path, call: Call) -> None:
    command = ["predict", made / "c" / "heads" / "h", made / "train", "--backbone", TINY, "--out", killed]
    assert call(*command, *RUNTIME)[0] == 0
    assert files_in(killed.parent) == ["t.csv"]


def test_in_python_the_parts_go_after_the_last_prediction(
    made: Path, tmp_path: Path, expected: list[Prediction]
) -> None:
    parts, warnings = tmp_path / "parts", list[ReportWarning]()
    options = {"backbone": TINY, "settings": SETTINGS, "parts": parts, "engine": "processes", "warnings": warnings}
    predictions = fc.predict(made / "c" / "heads" / "h", [made / "photos"], **options)
    assert [next(predictions) for _ in range(20)] == expected[:20]
    assert parts.exists()
    predictions.close()
    assert list(fc.predict(made / "c" / "heads" / "h", [made / "photos"], **options)) == expected
    assert not parts.exists()


def test_what_somebody_else_keeps_there_stays(made: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.txt").write_text("x")
    settings = ExtractionSettings(runtime="torch", batch_size=8)
    options = {"backbone": TINY, "settings": settings, "parts": tmp_path / "parts"}
    assert len(list(fc.predict(made / "c" / "heads" / "h", made / "train", **options))) == 45
    assert files_in(tmp_path / "parts") == ["mine.txt"]


def test_a_run_whose_parts_are_removed_meanwhile_does_not_make_them_again(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"

    def finish() -> None:
        make_job(made / "c" / "heads" / "h", made / "photos", parts=parts_of(out)).folder.remove()

    with pytest.raises(
        PartsGoneError, match="another run has removed the finished parts in .*: it has written the table"
    ):
        shared(made, out, Watching(finish), engine="local", settings=ExtractionSettings(batch_size=4, shard_rows=16))
    assert files_in(tmp_path) == []


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    rows = [Prediction(f"{i}.png", "a", 0.75, {"a": 0.75, "b": 0.25}) for i in range(5)]
    rows.append(Prediction("x\udcff.png", None, None, {}, "empty", "no bytes"))
    draft, path, remarks = PartDraft(), tmp_path / "part.gz", RemarkCounter()
    draft.add(rows, ["", "decoder", "", "deep", "", ""])
    path.write_bytes(draft.to_bytes())
    assert list(read_part(path, ["a", "b"], remarks)) == rows
    assert (dict(remarks.counts), remarks.damaged, remarks.flat) == ({"decoder": 1, "deep": 1}, ["1.png"], ["3.png"])
    whole = path.read_bytes()
    text = gzip.decompress(whole).splitlines(keepends=True)
    for damaged in (whole[:-20], b"", whole[:50] + b"\0\0\0\0" + whole[54:], gzip.compress(b"".join(text[1:]))):
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"part.gz is damaged; remove the file and run the command again"):
            list(read_part(path, ["a", "b"], RemarkCounter()))


def test_numbers_keep_every_digit(tmp_path: Path) -> None:
    rows = [Prediction("a", None, None, {}, numbers={"x": 1 / 3, "y": -1e-300}), Prediction("b", None, None, {}, "bad")]
    draft = PartDraft()
    draft.add(rows, ["", ""])
    (tmp_path / "p").write_bytes(draft.to_bytes())
    assert list(read_part(tmp_path / "p", ["x", "y"], RemarkCounter())) == rows


@pytest.mark.parametrize(
    ("choice", "rows", "device", "expected"),
    [
        (RuntimeChoice("torch", 4, (), False), None, "cpu", 256),
        (RuntimeChoice("torch", 48, (), False), None, "cpu", 288),
        (RuntimeChoice("torch", 512, (), False), None, "cuda", 2048),
        (RuntimeChoice("torch", 4, (16, 24), False), 100, "cpu", 512),
        (RuntimeChoice("torch", 100, (16, 24), False), 801, "cpu", 1600),
        (RuntimeChoice("torch", 4, (256,), False), 10, "cpu", 12),
    ],
)
def test_parts_are_whole_batches(choice: RuntimeChoice, rows: int | None, device: str, expected: int) -> None:
    assert part_size(choice, ExtractionSettings(shard_rows=rows), device) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_NTASKS": "2"}, ("3", 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, ("0-1", 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_PROCID": "0"}, ("7-0", 3)),
    ],
)
def test_ranks_know_how_many_they_are(environment: dict[str, str], expected: tuple[str, int]) -> None:
    assert rank_and_size(environment) == expected
    with pytest.raises(RequestError, match="nothing says how many processes write one table: set WORLD_SIZE"):
        rank_and_size({"RANK": "0"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "processes"], "--engine keeps finished parts beside a table; add --out FILE"),
        (["--out", "{}/x.csv", "--processes", "2"], "--processes is for engines that start several workers; add"),
        (["--out", "{}/x.csv", "--engine", "local", "--processes", "2"], "local starts none"),
        (["--out", "{}/x.csv", "--engine", "procesess"], "unknown engine 'procesess'; did you mean 'processes'"),
        (["--out", "{}/x.csv", "--engine", "rank"], "none of RANK, SLURM_PROCID, SLURM_ARRAY_TASK_ID is set"),
        (["--out", "{}/x.csv", "--engine", "rank", "--json"], "several processes write one table; leave --json out"),
        (["--out", "{}/x.csv", "--engine", "local", "--columns", "id,a,b"], "the column 'b' says nothing"),
        (["--out", "{}/x.csv", "--device", "cuda:all"], "'cuda:all' is for engines of several workers"),
    ],
)
def test_requests_that_make_no_sense_are_one_line(
    options: list[str], said: str, made: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RANK", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(variable, raising=False)
    options = [option.replace("{}", str(tmp_path)) for option in options]
    status, out, err = call("predict", made / "c" / "heads" / "h", made / "train", "--backbone", TINY, *options)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert files_in(tmp_path) == []


def test_functions_refuse_what_is_for_others(made: Path, tmp_path: Path) -> None:
    head = made / "c" / "heads" / "h"
    with pytest.raises(RequestError, match="the engine processes need a folder for finished parts; name one: parts="):
        fc.predict(head, made / "train", backbone=TINY, engine="processes")
    with pytest.raises(RequestError, match="the inputs are in the memory of this process"):
        pixels = np.zeros((3, 32, 32, 3), np.uint8)
        fc.predict(head, [pixels], backbone=TINY, engine="processes", parts=tmp_path / "p", settings=SETTINGS)
    with pytest.raises(RequestError, match="with the engine rank several processes write one table"):
        fc.predict(head, made / "train", backbone=TINY, engine="rank", parts=tmp_path / "p")


def test_a_signal_stops_all_workers_and_leaves_the_parts(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    command = [sys.executable, "-m", "featurecache", *predict_command(made, out, "--engine", "processes")]
    for _ in range(5):
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not list(parts_of(out).glob("leases/[0-9a-f]*.lease")) and process.poll() is None:
            time.sleep(0.01)
        # Held still until the signal is there, or a quick machine would be done before.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
            with suppress(ProcessLookupError):
                (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
        error = process.communicate(timeout=60)[1]
        if process.returncode not in (0, 1):
            break
        out.unlink()  # it was done before
    kept = f"{out} was not written, finished parts are kept, run the same command to go on"
    assert (process.returncode, error) == (128 + signal.SIGTERM, f"featurecache: stopped; {kept}\n")
    assert list(tmp_path.rglob("*.lease")) == list(tmp_path.rglob("*.partial")) == []
    assert list(parts_of(out).glob("plan-*")) != []
    subprocess.run(command, env=ENVIRONMENT, check=False)
    with out.open(newline="", errors="surrogateescape") as file:
        assert len(list(csv.DictReader(file))) == NUM_INPUTS
    assert files_in(tmp_path) == ["labels.csv"]
