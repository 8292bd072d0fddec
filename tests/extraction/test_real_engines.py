"""Extraction by torchrun, Slurm and Ray as they are installed, and on a file system without hard links.

Slow trials, by hand: ``pytest -m slow tests/extraction/test_real_engines.py``. Debian's ``slurm-wlm``, ``munge``,
``sshfs`` and ``openssh-sftp-server``, and ``pip install ray``, bring what they need; what is not there is skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY

from featurecache.atomic import is_partial
from featurecache.extraction.engines.ray import RayEngine
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.scan import scan
from featurecache.extraction.work import ExtractionWork
from featurecache.extraction.worker_report import WorkerReport
from featurecache.progress import Silent
from featurecache.sources.opening import source_spec
from featurecache.specs import ExtractionSettings

pytestmark = pytest.mark.slow
Make = Callable[..., Path]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
    "OMP_NUM_THREADS": "1",
}
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=5, dtype="float16")


def extract_command(source: Path, cache: Path) -> list[str]:
    options = ["--runtime", "torch", "--batch-size", "4", "--shard-rows", "5", "--dtype", "float16", "--quiet"]
    return ["extract", str(source), "--cache", str(cache), "--backbone", TINY, *options]


def features_of(cache: Path) -> dict[str, bytes]:
    """Everything in a cache but listings, whose stamps tell when the source was scanned, and what a kill leaves."""
    files = {path.relative_to(cache).as_posix(): path for path in cache.rglob("*") if path.is_file()}
    left = {name for name, path in files.items() if is_partial(path) or name.endswith(".lease")}
    return {name: files[name].read_bytes() for name in files.keys() - left if not name.startswith("sources/")}


@pytest.fixture
def photos(make_folder: Make, tmp_path: Path) -> Path:
    """A folder of images, whose features by the local engine are in ``whole``."""
    source = make_folder(per_class=40)
    run_extraction(source, tmp_path / "whole", make_request(TINY), settings=SETTINGS)
    return source


def run(command: list[str], **more: object) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def extracted(output: str) -> list[int]:
    """How many samples each worker said that it extracted."""
    return [int(line.split()[0]) for line in output.splitlines() if " extracted" in line]


def test_torchrun_with_two_ranks_makes_the_same_cache(photos: Path, tmp_path: Path) -> None:
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run([*ranks, "-m", "featurecache", *extract_command(photos, tmp_path / "c"), "--engine", "rank"])
    assert sum(extracted(output)) == 120
    assert len(extracted(output)) == 2
    assert features_of(tmp_path / "c") == features_of(tmp_path / "whole")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slurm of one machine with two cores, with a controller and an authentication of its own."""
    if any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("needs Debian's slurm-wlm and munge")
    folder, host = tmp_path / "slurm", socket.gethostname()
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o711)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = one.getsockname()[1], two.getsockname()[1]
    (folder / "slurm.conf").write_text(
        f"ClusterName=trial\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n"
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n"
        f"SlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n"
        f"SlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nJobAcctGatherType=jobacct_gather/none\n"
        "AccountingStorageType=accounting_storage/none\nReturnToService=2\nSlurmdParameters=config_overrides\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n"
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    )
    monkeypatch.setitem(ENVIRONMENT, "SLURM_CONF", str(folder / "slurm.conf"))
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--force", "--foreground", f"--socket={folder}/munge/socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
            )
            time.sleep(1)
        ends = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo"], env=ENVIRONMENT, capture_output=True, text=True).stdout:
            assert time.monotonic() < ends, "the node of Slurm is not there"
            time.sleep(0.5)
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


def test_two_tasks_of_srun_make_the_same_cache(slurm: None, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "featurecache", *extract_command(photos, tmp_path / "c"), "--engine", "rank"]
    output = run(["srun", "-n", "2", *command])
    assert sum(extracted(output)) == 120
    assert len(extracted(output)) == 2
    assert features_of(tmp_path / "c") == features_of(tmp_path / "whole")


def test_a_job_array_that_is_cancelled_and_sent_again_completes(slurm: None, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "featurecache", *extract_command(photos, tmp_path / "c"), "--engine", "rank"]
    batch = [
        "sbatch",
        "--parsable",
        "--array=0-1",
        "-n",
        "1",
        f"--output={tmp_path}/%a.log",
        "--wrap",
        " ".join(command),
    ]
    job = run(batch, cwd=tmp_path).strip()
    ends = time.monotonic() + 120
    while not any(tmp_path.glob("c/features/*/*/*/commits/[0-9]*.json")):
        assert time.monotonic() < ends, [path.read_text() for path in tmp_path.glob("*.log")]
        time.sleep(0.05)
    run(["scancel", job])
    run([*batch[:1], "--wait", *batch[1:]], cwd=tmp_path)
    assert features_of(tmp_path / "c") == features_of(tmp_path / "whole")
    leftovers = [path for path in (tmp_path / "c").rglob("*") if path.name.endswith((".lease", ".partial"))]
    assert leftovers == []


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")
@pytest.mark.filterwarnings("default")
def test_a_node_of_ray_that_is_lost_costs_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        job = ExtractionJob(
            source=source_spec(photos), cache=tmp_path / "c", backbone=make_request(TINY), settings=SETTINGS
        )
        scan(job)

        class Remove(Silent):
            has_removed = False

            def say(self, text: str) -> None:
                if not self.has_removed and any(tmp_path.glob("c/features/*/*/*/commits/[0-9]*.json")):
                    self.has_removed = True
                    cluster.remove_node(other, allow_graceful=False)

        removing = Remove()
        done = sum(RayEngine(removing).run(ExtractionWork(job)), WorkerReport())
        assert done.sets
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert features_of(tmp_path / "c") == features_of(tmp_path / "whole")


@pytest.fixture
def without_links(tmp_path: Path) -> Iterator[Path]:
    """A folder on sshfs, served by this machine, where nothing can be linked."""
    server = Path("/usr/lib/openssh/sftp-server")
    if shutil.which("sshfs") is None or not server.exists():
        pytest.skip("needs Debian's sshfs and openssh-sftp-server")
    behind, mounted = tmp_path / "behind", tmp_path / "mounted"
    behind.mkdir()
    mounted.mkdir()
    from_server, to_client = os.pipe()
    from_client, to_server = os.pipe()
    serving = subprocess.Popen([str(server)], stdin=from_client, stdout=to_client)
    options = ["-f", "-o", "passive", "-o", "disable_hardlink"]
    mount = subprocess.Popen(["sshfs", f":{behind}", str(mounted), *options], stdin=from_server, stdout=to_server)
    for pipe in (from_server, to_client, from_client, to_server):
        os.close(pipe)
    try:
        ends = time.monotonic() + 20
        while not os.path.ismount(mounted):
            assert time.monotonic() < ends
            time.sleep(0.1)
        yield mounted
    finally:
        subprocess.run(["fusermount3", "-u", str(mounted)], check=False)
        mount.wait(20)
        serving.terminate()
        serving.wait(20)


def test_a_network_folder_that_cannot_publish_says_so_before_anything_is_computed(
    without_links: Path, photos: Path
) -> None:
    """It has neither hard links nor a rename that replaces nothing, so that two writers could not be kept apart."""
    (without_links / "one").write_text("x")
    with pytest.raises(OSError, match="not permitted"):
        (without_links / "two").hardlink_to(without_links / "one")
    command = [sys.executable, "-m", "featurecache", *extract_command(photos, without_links / "c")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "put the cache on another file system" in done.stderr.splitlines()[-1]
