"""The answers about one task of a cache: what they share is gathered once, then one is asked after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from joblib import Parallel, delayed

from featurecache.advice.adaptation import adaptation_finding, cannot_adapt
from featurecache.advice.commands import Commands
from featurecache.advice.diagnosis import ErrorsOf, diagnosis_finding
from featurecache.advice.evidence import (
    FITTED,
    MAX_ROWS,
    Arm,
    Evidence,
    class_counts_by_split,
    gains,
)
from featurecache.advice.facts import facts_of
from featurecache.advice.finding import QUESTIONS, Finding
from featurecache.advice.how import depth_finding
from featurecache.advice.labelling import choose_samples, label_next_finding
from featurecache.advice.layers_scan import LayersScan, scan_layers
from featurecache.advice.more_data import learning_curve, more_data_finding
from featurecache.advice.probe import Floats, Probe, linear_probe, predict_new
from featurecache.advice.soundness import (
    copies_finding,
    count_findings,
    gains_with_copies_together,
    label_finding,
    shortcut_finding,
)
from featurecache.advice.structure import outliers_finding
from featurecache.advice.transferability import IMAGENET_ACCURACY, h_score, log_me
from featurecache.advice.unlabelled import rows_without_label
from featurecache.advice.what import Candidate, depth_of, features_finding
from featurecache.advice.when import transfer_finding
from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.adapting import adapt_heads
from featurecache.evaluation.domains import cached_rows_of_domain
from featurecache.evaluation.intervals import LEAST_GROUPS
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.near_copies import near_copies
from featurecache.evaluation.prediction import calibrated
from featurecache.evaluation.selection import fold_numbers
from featurecache.heads.probability import fit_temperature
from featurecache.heads.threads import one_thread
from featurecache.machine import num_cores
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.labels import SPLITS
from featurecache.store.naming import distinct_names
from featurecache.store.samples import Rows, some_rows
from featurecache.store.soundness import feature_warnings
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import read_views

if TYPE_CHECKING:
    from featurecache.progress import Progress

_CURVE_ROWS = 2000
_PROMISE_ROWS = 1000


class Advisor:
    """What the answers share: evidence, and the probes of its arms."""

    def __init__(
        self,
        store: FeatureStore,
        evidence: Evidence,
        target: tuple[str, Rows] | None,
        source: str | Path | None,
        not_made: Mapping[str, float],
        layers: LayersScan | None,
        looks_at_test: bool,
        random_state: int,
        n_jobs: int,
        progress: Progress | None,
    ) -> None:
        self._store, self._evidence, self._target, self._seed = store, evidence, target, random_state
        self._workers = num_cores() if n_jobs < 0 else max(n_jobs, 1)
        self._commands = Commands(store, evidence.task.name, source)
        self._names = self._names_of_arms()
        self._not_made, self._layers, self._looks_at_test = not_made, layers, looks_at_test
        self._only: frozenset[str] = frozenset()
        self._progress = progress
        self._probes: dict[str, Probe] = {}

    def findings(self, only: Sequence[str]) -> list[Finding]:
        """Ask all questions, or some."""
        wanted, self._only = only or QUESTIONS, frozenset(only)
        with one_thread():
            self._fit_probes()
            # What is fatal is told before anything else, unless something else is asked for by name.
            found = self._check_data() if "soundness" in wanted else []
            if any(finding.is_fatal for finding in found) and not only:
                return found
            answers = {
                "soundness": lambda: found,
                "when": lambda: [self._when()],
                "what": lambda: [self._what()],
                "how": lambda: [self._how()],
                "more_data": lambda: [self._more_data()],
                "diagnosis": lambda: [self._diagnosis()],
                "adaptation": self._adaptation,
            }
            return [finding for question, ask in answers.items() if question in wanted for finding in ask()]

    def _fit_probes(self) -> None:
        arms = self._evidence.arms
        if self._progress is not None:
            self._progress.start("comparing features", len(arms))

        def fit(arm: Arm) -> Probe:
            probe = self._evidence.probe(arm, self._store)
            if self._progress is not None:
                self._progress.advance(1)
            return probe

        # Threads: what takes long is linear algebra, which lets others run.
        fitted = Parallel(n_jobs=min(self._workers, len(arms)), prefer="threads")(delayed(fit)(arm) for arm in arms)
        self._probes = {arm.feature_set.key: probe for arm, probe in zip(arms, fitted, strict=True)}

    def _gains(self, arm: Arm) -> Floats:
        evidence = self._evidence
        return gains(evidence.y, self._probes[arm.feature_set.key].out_of_fold, evidence.kind)

    def _best(self) -> Arm:
        """Return the pretrained arm with the highest score; of equals the first."""
        return max(self._pretrained(), key=lambda arm: float(self._gains(arm).mean()))

    def _pretrained(self) -> list[Arm]:
        return [arm for arm in self._evidence.arms if arm.role == "pretrained"]

    def _default(self) -> Arm:
        """Return the default tap of a pretrained network, of several the one with the highest score."""
        defaults = [arm for arm in self._pretrained() if _is_default(arm.feature_set)]
        return max(defaults or self._pretrained(), key=lambda arm: float(self._gains(arm).mean()))

    def _check_data(self) -> list[Finding]:
        evidence, task = self._evidence, self._evidence.task
        commands = {"label": self._commands.label()}
        num_groups = None if task.groups is None else len(np.unique(task.groups))
        found = (
            count_findings(class_counts_by_split(task), num_groups, commands=commands)
            if task.kind != "regression"
            else []
        )
        found += self._feature_warnings()
        arm = self._best()
        # Copies of test samples are looked for too; their labels are not.
        rows = np.concatenate([evidence.rows, self._test_rows(arm)])
        X, count = replace(arm, rows=rows).features(), len(evidence.rows)
        copies, names = near_copies(X), self._store.samples.uris_of(rows)
        gained = self._gains(arm)
        together, groups = gained, copies.group[:count]
        if len(copies.pairs) and len(np.unique(groups)) >= 5:
            score = partial(gains, evidence.y, kind=evidence.kind)
            together = gains_with_copies_together(X[:count], evidence.targets, groups, score, self._seed)
        splits = [SPLITS[number] for number in task.splits[task.indices_of(rows)].tolist()]
        # Of fewer groups no splits can be made.
        enough = len(np.unique(copies.group)) >= 3 * max(len(task.classes), 2)
        command = self._commands.keep_copies_together() if len(copies.pairs) and enough else None
        found.append(
            copies_finding(copies, splits, gained, together, names, score=evidence.score_name, next_command=command)
        )
        name = self._name(arm)
        outliers = outliers_finding(X[:count], names[:count], name, groups, question="soundness")
        found += [] if outliers is None else [outliers]
        if task.kind == "classification":
            found += self._labels(arm, names)
            if facts := facts_of(self._store, evidence.rows):
                found.append(
                    shortcut_finding(facts, evidence.y.astype(np.int64), gained, evidence.folds, evidence.groups)
                )
        return found

    def _feature_warnings(self) -> list[Finding]:
        """Return what is doubtful about the features themselves."""
        sets = [arm.feature_set for arm in self._pretrained()]
        return [
            Finding(
                question="soundness",
                verdict=warning.kind.replace("_", " "),
                text=warning.text,
                n=len(self._evidence.rows),
                basis="the cached features",
                figure=float(warning.count),
                details={"warning": warning.kind},
            )
            for warning in feature_warnings(sets)
            if warning.kind in ("constant_features", "storage_error", "flat_images")
        ]

    def _labels(self, arm: Arm, names: Sequence[str]) -> list[Finding]:
        from importlib.util import find_spec

        evidence = self._evidence
        if find_spec("cleanlab") is None:
            return []
        decisions = self._probes[arm.feature_set.key].out_of_fold[:, None, :]
        y = evidence.y.astype(np.int64)
        proba = calibrated(decisions, fit_temperature(decisions, y))
        return [label_finding(y, proba, names, evidence.task.classes)]

    def _when(self) -> Finding:
        evidence, default = self._evidence, self._default()
        mine = default.feature_set.identity.architecture
        # Of untrained networks that of the same architecture, at all its taps.
        arms = [
            arm
            for arm in evidence.arms
            if arm.feature_set.is_baseline
            or (arm.role == "untrained" and arm.feature_set.identity.architecture == mine)
        ]
        without = {self._name(arm): self._gains(arm) for arm in arms}
        if evidence.kind == "classification":
            without["largest class"] = evidence.floor
        commands = self._commands.without_transfer(default.feature_set)
        found = transfer_finding(
            self._gains(default),
            without,
            evidence.groups,
            name=self._name(default),
            score=evidence.score_name,
            missing={role: command for role, command in commands.items() if role not in {arm.role for arm in arms}},
        )
        if not self._not_made:
            return found
        left = ", ".join(f"{role} (about {seconds:.0f} s)" for role, seconds in self._not_made.items())
        text = f"{found.text}; not made within the minutes: {left}"
        return replace(found, text=text, details={**found.details, "missing_seconds": dict(self._not_made)})

    def _what(self) -> Finding:
        if self._layers is not None:
            return self._scanned(self._layers)
        evidence, arms = self._evidence, self._pretrained()
        measure = measure_of(evidence.kind, len(evidence.task.classes))
        predictions = [self._predictions(arm) for arm in arms]
        order = sorted({arm.feature_set.tap for arm in arms}, key=depth_of)
        default = self._default()
        candidates = [
            Candidate(
                name=self._name(arm),
                num_parameters=arm.feature_set.about.num_parameters,
                num_bytes=arm.feature_set.num_bytes,
                command=self._commands.train(arm.feature_set),
                order=order.index(arm.feature_set.tap),
                is_default=arm is default and _is_default(default.feature_set),
                promises=self._promises(arm),
            )
            for arm in arms
        ]
        found = features_finding(evidence.y, predictions, candidates, measure, evidence.groups)
        if len(arms) > 1:
            return found
        # Nothing to compare with yet: one pass more gives all blocks of the network.
        return replace(found, next_command=self._commands.more_layers(arms[0].feature_set))

    def _scanned(self, scan: LayersScan) -> Finding:
        """Compare all blocks of the network with its default tap, on inputs that are computed for that alone."""
        evidence, default = self._evidence, self._default()
        found = scan_layers(
            self._store, evidence, default.feature_set, scan, random_state=self._seed, progress=self._progress
        )
        y, targets, folds = evidence.y[found.index], evidence.targets[found.index], evidence.folds[found.index]
        groups = None if evidence.groups is None else evidence.groups[found.index]
        feature_set, name = default.feature_set, self._name(default)
        every = {feature_set.tap: default.features()[found.index], **found.features}
        order = sorted(every, key=depth_of)
        candidates, predictions = [], []
        for tap, X in every.items():
            out = linear_probe(X, targets, folds).out_of_fold
            predictions.append(out.argmax(axis=1) if evidence.kind == "classification" else out)
            candidates.append(
                Candidate(
                    name=name if tap == feature_set.tap else f"{tap} of {feature_set.identity.backbone}",
                    num_parameters=feature_set.about.num_parameters,
                    num_bytes=2 * X.shape[1],
                    command=self._commands.extract_tap(feature_set, tap),
                    order=order.index(tap),
                    is_default=tap == feature_set.tap and _is_default(feature_set),
                )
            )
        measure = measure_of(evidence.kind, len(evidence.task.classes))
        finding = features_finding(y, predictions, candidates, measure, groups)
        details = {**finding.details, "scanned": list(found.features)}
        basis = f"{finding.basis}; {len(found.features)} layers were computed for this and not kept"
        return replace(finding, basis=basis, details=details)

    def _promises(self, arm: Arm) -> dict[str, float | None]:
        """Return what is known of features without a probe."""
        evidence, some = self._evidence, slice(0, _PROMISE_ROWS)
        X = arm.features()[some]
        promises: dict[str, float | None] = {"log_me": log_me(X, evidence.targets[some])}
        if evidence.kind == "classification":
            promises["h_score"] = h_score(X, evidence.y[some].astype(np.int64))
        feature_set = arm.feature_set
        # What was published is of the default weights.
        own = feature_set.about.weights_source.startswith("file ")
        published = None if own else IMAGENET_ACCURACY.get(feature_set.identity.backbone)
        return {**promises, "imagenet_accuracy": published}

    def _how(self) -> Finding:
        evidence, arm = self._evidence, self._best()
        errors = 1.0 - gains(evidence.y, self._probes[arm.feature_set.key].in_sample, evidence.kind)
        command = self._commands.deeper(arm.feature_set)
        return depth_finding(errors, evidence.groups, name=self._name(arm), next_command=command)

    def _predictions(self, arm: Arm) -> np.ndarray:
        out = self._probes[arm.feature_set.key].out_of_fold
        return out.argmax(axis=1) if self._evidence.kind == "classification" else out

    def _more_data(self) -> Finding:
        evidence, arm = self._evidence, self._best()
        X, kept = arm.features(), some_rows(np.arange(len(evidence.rows)), _CURVE_ROWS, self._seed)
        curve = learning_curve(
            X[kept],
            evidence.targets[kept],
            evidence.y[kept],
            lambda y, predicted: gains(y, predicted, evidence.kind),
            evidence.folds[kept],
            None if evidence.groups is None else evidence.groups[kept],
            penalty=self._probes[arm.feature_set.key].penalty,
            random_state=self._seed,
        )
        found = more_data_finding(curve, score=evidence.score_name, n=len(kept), random_state=self._seed)
        return replace(found, basis=f"{found.basis}, on {self._name(arm)}")

    def _diagnosis(self) -> Finding:
        evidence, arm = self._evidence, self._best()
        probe = self._probes[arm.feature_set.key]
        target = target_groups = None
        if self._target is not None and len(self._target[1]):
            target, target_groups = self._errors_on(arm, probe, self._target[1])
        feature_set = arm.feature_set
        commands = {"bias": self._commands.deeper(feature_set), "variance": self._commands.views(feature_set)}
        commands["overfitting to dev"] = self._commands.label()
        found = diagnosis_finding(
            1.0 - gains(evidence.y, probe.in_sample, evidence.kind),
            1.0 - self._gains(arm),
            1.0 - evidence.floor,
            evidence.groups,
            target=target,
            target_groups=target_groups,
            target_name="target" if self._target is None else self._target[0],
            others=self._errors_of_splits(arm, probe),
            commands=commands,
        )
        return replace(found, basis=f"{found.basis}; {self._name(arm)}")

    def _errors_of_splits(self, arm: Arm, probe: Probe) -> dict[str, ErrorsOf]:
        """Return errors of samples cut from the train split, of the validation split, and of test samples if asked."""
        evidence, task = self._evidence, self._evidence.task
        X, is_train = arm.features(), task.splits[task.indices_of(evidence.rows)] == SPLITS.index("train")
        cut, found = is_train.copy(), dict[str, ErrorsOf]()
        groups = None if evidence.groups is None else evidence.groups[is_train]
        if is_train.sum() > LEAST_GROUPS and (groups is None or len(np.unique(groups)) > 1):
            cut[is_train] = fold_numbers(evidence.y[is_train], groups, random_state=self._seed) == 0
        fitted = is_train & ~cut
        for name, rows in (("train-dev", cut), ("dev", ~is_train)):
            if fitted.sum() < LEAST_GROUPS or rows.sum() < LEAST_GROUPS:
                continue
            predicted = predict_new(X[fitted], evidence.targets[fitted], X[rows], probe.penalty)
            groups = None if evidence.groups is None else evidence.groups[rows]
            found[name] = 1.0 - gains(evidence.y[rows], predicted, evidence.kind), groups
        if self._looks_at_test and len(rows := self._test_rows_of_target(arm)) >= LEAST_GROUPS:
            found["test"] = self._errors_on(arm, probe, rows)
        return found

    def _test_rows_of_target(self, arm: Arm) -> Rows:
        """Return the test rows, of the target where one is named."""
        rows = self._test_rows(arm)
        if self._target is None or self._target[0] in SPLITS:
            return rows
        features = arm.feature_set.open()
        mine = cached_rows_of_domain(self._store, self._evidence.task, self._target[0], features)
        return rows[np.isin(rows, mine)]

    def _adaptation(self) -> list[Finding]:
        """Return whether a way to adapt is borne out by the target; nothing where there is none."""
        evidence, target = self._evidence, self._target
        if target is None or evidence.kind != "classification":
            return []
        feature_set = self._best().feature_set
        try:
            report = adapt_heads(self._store, evidence.task, feature_set, target[0], random_state=self._seed)
        except (RequestError, TaskError) as error:
            if self._is_named("adaptation"):
                raise
            return [cannot_adapt(str(error), len(target[1]))]
        command = self._commands.adapt(feature_set, target[0])
        return [adaptation_finding(report, name=self._name(self._best()), next_command=command)]

    def _is_named(self, question: str) -> bool:
        """Tell whether a question was asked by its name, so that what stands in its way is an error."""
        return question in self._only

    def label_next(self, count: int) -> Finding:
        """Name the samples without a label that are the most useful to label.

        Parameters
        ----------
        count : int
        """
        task, feature_set = self._evidence.task, self._best().feature_set
        if task.kind != "classification":
            raise RequestError(f"what to label next is told for tasks of classes; {task.name!r} is of kind {task.kind}")
        features = feature_set.open()
        found = [task.rows(features, split) for split in filter(task.has, FITTED)]
        rows, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
        pool = rows_without_label(self._store, task, feature_set, self._seed)
        X = read_views(features, np.concatenate([rows, pool]))[:, 0]
        known = np.arange(len(rows))
        chosen = choose_samples(X, known, y, len(task.classes), count, random_state=self._seed) - len(rows)
        names = self._store.samples.uris_of(pool[chosen])
        command = self._commands.label()
        return label_next_finding(names, len(rows), len(task.classes), len(pool), next_command=command)

    def _errors_on(self, arm: Arm, probe: Probe, wanted: Rows) -> ErrorsOf:
        """Return the errors of other rows by the fit on all rows of the evidence."""
        evidence, task = self._evidence, self._evidence.task
        features = arm.feature_set.open()
        found = [task.rows(features, split) for split in filter(task.has, SPLITS)]
        rows, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
        rows, y = rows[mine := np.isin(rows, wanted)], y[mine]
        X = read_views(features, rows)[:, 0]
        predicted = predict_new(arm.features(), evidence.targets, X, probe.penalty)
        groups = task.groups_of(rows)
        return 1.0 - gains(y, predicted, evidence.kind), None if groups is None else groups.astype(np.int64)

    def _test_rows(self, arm: Arm) -> Rows:
        """Return the rows of the test split, or a sample of them."""
        task = self._evidence.task
        rows = task.rows(arm.feature_set.open(), "test")[0] if task.has("test") else np.empty(0, np.int64)
        return some_rows(rows, MAX_ROWS, self._seed)

    def _names_of_arms(self) -> dict[str, str]:
        """Return what people call each arm, by the key of its feature set."""
        names = {}
        for is_baseline in (True, False):
            arms = [arm for arm in self._evidence.arms if arm.feature_set.is_baseline == is_baseline]
            documents = [arm.feature_set.to_json() for arm in arms]
            if is_baseline:  # what no network made has one tap, which says nothing
                documents = [{**document, "tap": document["backbone"], "backbone": ""} for document in documents]
            for arm, name in zip(arms, distinct_names(documents), strict=True):
                names[arm.feature_set.key] = f"{name}, untrained" if arm.role == "untrained" else name
        return names

    def _name(self, arm: Arm) -> str:
        return self._names[arm.feature_set.key]


def _is_default(feature_set: FeatureSet) -> bool:
    return feature_set.tap.partition(":")[0] == "pre_logits"
