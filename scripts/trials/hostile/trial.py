"""Caches made by an attacker, digests and all: looking at one neither crashes, hangs, lies nor leaves its folder.

Every attack is tried by every way that there is to look: verify, info, ls, task ls, reading all, opening heads, then
repair and gc on the same copy. Each runs in a process with limits on time and memory; an audit hook and inotify (which
also sees libhdf5) tell what it opened.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trials.blocks import PATTERN, features_by_id
from trials.common import BACKBONE, Options, Tally, for_each, problems_of, run_child, search_little, write_images
from trials.hostile.contents import content_attacks
from trials.hostile.fields import fuzz_attacks
from trials.hostile.forgery import HEADS, OTHER_TASKS, SECRET, TASK, Attack, Forgery
from trials.hostile.hdf5_tricks import hdf5_attacks
from trials.hostile.heads import head_attacks
from trials.hostile.json_records import json_attacks
from trials.hostile.links import link_attacks
from trials.hostile.looks import CHANGING, LOOKS, Outcome, choose_looks, run_looks
from trials.hostile.names import name_attacks
from trials.hostile.units import extract_again, make_good_blocks, unit_attacks


def try_hostile(options: Options) -> list[Tally]:
    """Build the good cache, make every attack on a copy of it, and look."""
    good = options.scratch / "good.cache"
    _in_child(partial(make_good_cache, options.scratch / "photos", good))
    blocks = options.scratch / "blocks"
    if not options.quick:
        _in_child(partial(make_good_blocks, options.scratch / "photos", blocks))
    _warm_up(good)
    attacks = [
        *link_attacks(),
        *name_attacks(quick=options.quick),
        *json_attacks(quick=options.quick),
        *content_attacks(quick=options.quick),
        *hdf5_attacks(),
        *head_attacks(),
        *fuzz_attacks(good),
    ]
    of_units = [] if options.quick else list(unit_attacks(blocks))
    random.Random(0).shuffle(attacks)  # the slow ones not all to one worker
    most = (2, 1) if options.quick else (250, 36)  # libhdf5 is asked in a process of its own for each shard
    attacks = [a for group in GROUPS for a in [a for a in attacks if a.group == group][: most[group == "hdf5"]]]
    attacks.insert(0, Attack("nothing", "the good cache", lambda forgery: None, None))
    tallies = {group: Tally(f"{promise} {BROKEN}") for group, promise in GROUPS.items()}
    causes: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
    work = partial(_try_attack, good, options.quick)
    results = for_each(attacks, work, jobs=options.jobs, timeout=900)
    random.Random(0).shuffle(of_units)
    if of_units:
        work = partial(_try_unit_attack, blocks, features_by_id(blocks / "whole"))
        results += for_each(of_units[:400], work, jobs=options.jobs, timeout=900)
        attacks += [attack for _, attack in of_units[:400]]
    for attack, result in zip(attacks, results, strict=True):
        problems = problems_of(result)
        tallies[attack.group].add(problems, label=attack.name)
        causes[attack.group].update({_cause(problem) for problem in problems})
    for group, tally in tallies.items():
        tally.numbers = dict(causes[group].most_common())
        tally.notes += [f"{number} x {cause}" for cause, number in causes[group].most_common(40)]
    return list(tallies.values())


GROUPS = {
    "nothing": "good caches",
    "links": "caches with links, pipes, sockets and devices",
    "names": "caches with hostile names and numbers of files",
    "json": "caches with hostile JSON",
    "content": "caches with impossible shapes, rows, labels and text",
    "hdf5": "caches whose shards hold tricks of HDF5",
    "heads": "caches with hostile heads",
    "fields": "caches with one field of a record replaced",
    "units": "caches of tars in one pass with hostile listings of units",
}
BROKEN = "crashed a look, hung it, led it outside, or passed verification"


def _cause(problem: str) -> str:
    """What several violations have in common."""
    return re.sub(r"\d+", "N", problem.partition(" | ")[0])[:160]


def _in_child(work: Callable[[], int]) -> None:
    ended = run_child(work, timeout=600)
    if ended.status:
        raise RuntimeError(f"the good cache could not be made: {ended.error}")


def make_good_cache(source: Path, cache: Path) -> int:
    """Make a cache with everything that a cache can have."""
    import torch
    from sklearn.preprocessing import StandardScaler  # noqa: F401 - imported before the clock of training starts

    from featurecache.cli import main
    from featurecache.deployment.kept import keep_head
    from featurecache.evaluation.training import train_heads
    from featurecache.store.store import FeatureStore

    torch.set_num_threads(1)
    search_little()
    write_images(source, count=16)
    command = ["extract", str(source), "--cache", str(cache), "--backbone", BACKBONE, "--runtime", "torch", "--quiet"]
    extract = [*command, "--tap", "body:avg", "--batch-size", "4", "--shard-rows", "9", "--max-bad", "1"]
    status = main(extract)
    status = status or main(["convert", str(cache), "--to", "int8", "--json"])
    status = status or main(["task", "add", str(cache), TASK, "--from-folders", "--json"])
    store = FeatureStore.open(cache)
    sets = [store.find(dtype="float16")]
    report = train_heads(store, store.task(TASK), sets, list(HEADS), n_jobs=1, random_state=0)
    for head in report.heads:
        keep_head(store, head.result.head, head)
    table = source.with_name("said.csv")
    rows = [f"{path.relative_to(source)},{'ab'[k % 2]};{'cd'[k // 2 % 2]},{k / 7}" for k, path in _images(source)]
    table.write_text("\n".join(["path,tags,size", *rows]) + "\n")
    for name, (kind, heads) in OTHER_TASKS.items():
        column = "tags" if kind == "multilabel" else "size"
        command = ["task", "add", str(cache), name, str(table), "--kind", kind, "--label-column", column, "--json"]
        status = status or main(command)
        report = train_heads(store, store.task(name), sets, list(heads), n_jobs=1, random_state=0)
        for head in report.heads:
            keep_head(store, f"{kind}-{head.result.head}", head)
    (source / "odd" / "0001.png").unlink()
    status = status or main(extract)  # a row that no source holds any more is for gc
    store.remember_request("0" * 64, sets[0].fingerprint, [sets[0].tap])
    (cache / "report.html").write_text("<p>a report</p>")
    folder = sets[0].folder.path
    leases = folder.parents[1] / "leases"
    leases.mkdir(exist_ok=True)
    (leases / "000000000000.lease").write_text('{"host": "somewhere", "boot": "", "pid": 1}')
    aside = cache / "quarantine" / "0001" / folder.relative_to(cache)
    for name in ("commits", "shards"):
        shutil.copytree(folder / name, aside / name)
    return status


def _images(source: Path) -> Iterator[tuple[int, Path]]:
    """Name the good images by their numbers: copies have those of what they are copies of."""
    for path in sorted(source.rglob("*.png")):
        if not path.name.startswith("broken"):
            yield int(path.stem[:4]), path


def _warm_up(good: Path) -> None:
    """Look once here: children start at once then, and what they open is not their own imports."""
    import h5py  # noqa: F401

    import featurecache.store.gc
    import featurecache.store.repair  # noqa: F401

    with contextlib.redirect_stdout(io.StringIO()):
        for look in LOOKS:
            if status := look.run(good, True):
                raise RuntimeError(f"{look.name} of the good cache ended with status {status}")


def _try_attack(good: Path, quick: bool, attack: Attack) -> dict[str, Any]:
    """Make one attack on a copy of the good cache and look at it in every way."""
    place = good.parent / f"attack-{os.getpid()}"
    try:
        forgery = _forge(good, place, attack)
        outcomes = run_looks(choose_looks(attack, quick=quick), forgery)
        return {"problems": _judge(attack, outcomes)}
    finally:
        _remove(place)


def _try_unit_attack(blocks: Path, truth: dict[str, bytes], chosen: tuple[str, Attack]) -> dict[str, Any]:
    """Do the same with a cache of tars in one pass, and extract into it at the end."""
    state, attack = chosen
    place = blocks.parent / f"attack-{os.getpid()}"
    try:
        forgery = _forge(blocks / state, place, attack)
        problems = _judge(attack, run_looks(choose_looks(attack, quick=False), forgery))
        return {"problems": problems + extract_again(forgery, attack, str(blocks / "tars" / PATTERN), truth)}
    finally:
        _remove(place)


def _forge(good: Path, place: Path, attack: Attack) -> Forgery:
    _remove(place)
    forgery = Forgery(place / "a.cache", place / "outside")
    shutil.copytree(good, forgery.cache)
    forgery.outside.mkdir()
    (forgery.outside / "secret.txt").write_text(f"{SECRET}\n")
    (forgery.outside / "secret").mkdir()
    (place / "ab").write_text(SECRET)
    (forgery.outside / "secret" / "secret.json").write_text(json.dumps({"format": SECRET, "version": [SECRET]}))
    attack.forge(forgery)
    return forgery


def _remove(place: Path) -> None:
    try:
        shutil.rmtree(place)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):  # trees as deep as those of some attacks are too much for rmtree
        subprocess.run(["rm", "-rf", str(place)], check=True)


def _judge(attack: Attack, outcomes: list[Outcome]) -> list[str]:
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    verified = {o.look.removeprefix("verify "): o.status for o in outcomes if o.look.startswith("verify ")}
    levels = ("structure", "blocks", "digest", "hdf5")
    if attack.noticed:
        needed = [level for level in levels[levels.index(attack.noticed) :] if level in verified]
        problems += [f"verify {level} finds nothing" for level in needed if verified[level] == 0]
    elif verified.get("digest") == 0:
        others = [look.name for look in CHANGING]
        refused = [o for o in outcomes if o.status and not o.look.startswith("verify") and o.look not in others]
        problems += [f"verify finds nothing, but {o.look} fails | {o.said}" for o in refused]
    return problems
