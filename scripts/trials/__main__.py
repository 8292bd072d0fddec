"""The promises of the store, tried out: each trial prints how many attempts broke a promise.

    python scripts/trials kill                    SIGKILL at every file-system call and at random moments
    python scripts/trials faults                  full disk, I/O error, quota and short writes at every call
    python scripts/trials flips                   changed, missing and zeroed bytes
    python scripts/trials hostile                 caches made by an attacker, digests and all
    python scripts/trials races                   eight writers at once
    python scripts/trials gc                      garbage collection over overlapping shards of killed writers
    python scripts/trials publish                 two writers and killed writers of everything that has a name
    python scripts/trials fsync                   power cuts on a file system that keeps only what was synced
    python scripts/trials images                  mutated image files
    python scripts/trials changes                 what must be noticed, and what must not matter
    python scripts/trials servers                 nginx and an S3 server over a wire that fails
    python scripts/trials coverage                how often 95 % intervals hold the truth, and how wide they are
    python scripts/trials durability              what fsync, checksums and commits cost
    python scripts/trials size --scratch DIR      ten million rows; needs 12 GB below DIR
    python scripts/trials kill flips --quick      several, small

Exit status: 0 no promise was broken, 1 some was. ``--json FILE`` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

# One thread in every process: trials fork, and a forked child has only the thread that forked.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts"), str(REPOSITORY / "tests")]

from trials import collection, corruption, costs, coverage, crashes, images, named, power, races, servers  # noqa: E402 - needs the path above
from trials.changes.trial import try_changes  # noqa: E402
from trials.common import Options, Tally  # noqa: E402
from trials.hostile.trial import try_hostile  # noqa: E402

TRIALS = {
    "kill": crashes.try_kills,
    "faults": crashes.try_faults,
    "flips": corruption.try_flips,
    "hostile": try_hostile,
    "races": races.try_races,
    "gc": collection.try_gc,
    "publish": named.try_publish,
    "fsync": power.try_fsync,
    "images": images.try_images,
    "changes": try_changes,
    "servers": servers.try_servers,
    "coverage": coverage.try_coverage,
    "durability": costs.try_durability,
    "size": costs.try_size,
}


def main() -> int:
    """Run the trials that were asked for."""
    parser = argparse.ArgumentParser(
        prog="trials", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", nargs="+", choices=sorted(TRIALS), metavar="TRIAL")
    parser.add_argument("--quick", action="store_true", help="a small number of attempts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at once")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to write (default: the temporary folder)")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of the trial `size`")
    args = parser.parse_args()
    results = {}
    for name in args.trials:
        # Not TemporaryDirectory: its finalizer would also run in every forked child.
        scratch = Path(tempfile.mkdtemp(prefix=f"trial-{name}-", dir=args.scratch))
        started = time.perf_counter()
        try:
            tallies = TRIALS[name](Options(quick=args.quick, jobs=args.jobs, scratch=scratch, rows=args.rows))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        seconds = time.perf_counter() - started
        print_tallies(name, tallies, seconds)
        results[name] = {"seconds": round(seconds, 1), "tallies": [tally.to_json() for tally in tallies]}
    if args.json:
        args.json.write_text(json.dumps({"quick": args.quick, "trials": results}, indent=1) + "\n")
    return int(any(tally["num_violations"] for result in results.values() for tally in result["tallies"]))


def print_tallies(name: str, tallies: list[Tally], seconds: float) -> None:
    """Print one line for each promise, then what broke it."""
    for tally in tallies:
        print(f"{name}: {tally.line()}")
        for violation in tally.violations[:10]:
            print(f"  violation: {violation}")
        for note in tally.notes:
            print(f"  {note}")
    print(f"{name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
