"""The answers about one task of a cache: what they share is gathered once, then one is asked after the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from featurecache.advice.active_learning import choose_samples, label_next_finding
from featurecache.advice.adaptation import adaptation_finding
from featurecache.advice.commands import Commands
from featurecache.advice.diagnosis import diagnosis_finding, errors_by_split, errors_on, rows_of_test_split
from featurecache.advice.evidence import FITTED, SCORE_NAMES, Evidence, ProbedArm, class_counts_by_split, gains
from featurecache.advice.finding import TOPICS, Finding
from featurecache.advice.how import depth_finding
from featurecache.advice.layers_scan import LayersScan, scan_layers
from featurecache.advice.more_data import learning_curve, more_data_finding
from featurecache.advice.probe import linear_probe
from featurecache.advice.soundness import (
    copies_finding,
    count_findings,
    facts_of,
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
from featurecache.evaluation.intervals import LEAST_GROUPS
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.near_copies import near_copies
from featurecache.heads.probability import calibrated, fit_temperature
from featurecache.store.labels import SPLITS
from featurecache.store.samples import Rows, some_rows
from featurecache.store.soundness import feature_warnings
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import read_views
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.progress import Progress

# The kernel of a curve has the square of so many entries, and is solved at eight sizes for ten draws.
_CURVE_ROWS = 2000
# Promises are compared with a probe that takes a second: they may not take longer.
_PROMISE_ROWS = 1000


@dataclass(kw_only=True, eq=False)
class Advisor:
    """Answers each question about one task from the same rows and the same probes.

    Parameters
    ----------
    store : FeatureStore
    evidence : Evidence
    arms : sequence of ProbedArm
        Of the evidence, one at least of a pretrained network.
    target : tuple of str and ndarray of int64, optional
        Name of a target domain, and its rows that have a label.
    commands : Commands
        That answers name.
    not_made : mapping of str to float
        Predicted seconds of arms that no budget allowed, by role.
    layers : LayersScan, optional
        Compare all blocks of the network instead of what is cached.
    look_at_test : bool
        Tell errors of the test split too.
    only : collection of str
        Questions that were asked by name; all when empty.
    random_state : int
    progress : Progress, optional
        Of the scan of layers.
    """

    store: FeatureStore
    evidence: Evidence
    arms: Sequence[ProbedArm]
    target: tuple[str, Rows] | None
    commands: Commands
    not_made: Mapping[str, float]
    layers: LayersScan | None
    look_at_test: bool
    only: Collection[str]
    random_state: int
    progress: Progress | None

    def __post_init__(self) -> None:
        evidence = self.evidence
        # What each row adds to the score of a prediction that sees no features: the largest class, or the mean.
        constant = np.broadcast_to(evidence.targets.mean(axis=0), evidence.targets.shape)
        self._floor = gains(evidence.y, np.asarray(constant), evidence.task.kind)
        self._pretrained = [arm for arm in self.arms if arm.role == "pretrained"]
        # Of equals the first, so that the same cache is answered the same.
        self._best = max(self._pretrained, key=lambda arm: float(arm.gains.mean()))
        defaults = [arm for arm in self._pretrained if arm.is_default]
        self._default = max(defaults or self._pretrained, key=lambda arm: float(arm.gains.mean()))

    def findings(self) -> list[Finding]:
        """Answer all questions, or those that were asked by name."""
        requested = self.only or TOPICS
        # What is fatal is told before anything else, unless something else is asked for by name.
        found = self._check_data() if "soundness" in requested else []
        if any(finding.is_fatal for finding in found) and not self.only:
            return found
        rest = {
            "when": self._when,
            "what": self._what,
            "how": self._how,
            "more_data": self._more_data,
            "diagnosis": self._diagnosis,
            "adaptation": self._adaptation,
        }
        found += [finding for name, answer in rest.items() if name in requested and (finding := answer()) is not None]
        return found

    def _check_data(self) -> list[Finding]:
        evidence, task = self.evidence, self.evidence.task
        commands = {"label": self.commands.label}
        num_groups = None if task.groups is None else len(np.unique(task.groups))
        found = (
            count_findings(class_counts_by_split(task), num_groups, commands=commands)
            if task.kind != "regression"
            else []
        )
        found += self._feature_warnings()
        arm = self._best
        # Copies of test samples are looked for too; their labels are not.
        tested = rows_of_test_split(self.store, task, arm.feature_set, random_state=self.random_state)
        rows = np.concatenate([evidence.rows, tested])
        X, count = replace(arm, rows=rows).features(), len(evidence.rows)
        copies, names = near_copies(X), self.store.samples.uris_of(rows)
        together, groups = arm.gains, copies.group[:count]
        if len(copies.pairs) and len(np.unique(groups)) >= 5:
            score = partial(gains, evidence.y, kind=task.kind)
            together = gains_with_copies_together(X[:count], evidence.targets, groups, score, self.random_state)
        splits = [SPLITS[number] for number in task.splits[task.indices_of(rows)].tolist()]
        # Of fewer groups no splits can be made.
        enough = len(np.unique(copies.group)) >= 3 * max(len(task.classes), 2)
        command = self.commands.keep_copies_together() if len(copies.pairs) and enough else None
        found.append(
            copies_finding(
                copies, splits, arm.gains, together, names, score=SCORE_NAMES[task.kind], next_command=command
            )
        )
        outliers = outliers_finding(X[:count], names[:count], arm.name, groups, question="soundness")
        found += [] if outliers is None else [outliers]
        if task.kind == "classification":
            found += self._label_findings(arm, names)
            if facts := facts_of(self.store, evidence.rows):
                found.append(
                    shortcut_finding(facts, evidence.y.astype(np.int64), arm.gains, evidence.folds, evidence.groups)
                )
        return found

    def _feature_warnings(self) -> list[Finding]:
        """Return what is doubtful about the features themselves."""
        sets = [arm.feature_set for arm in self._pretrained]
        return [
            Finding(
                question="soundness",
                verdict=warning.kind.replace("_", " "),
                text=warning.text,
                n=len(self.evidence.rows),
                basis="the cached features",
                figure=float(warning.count),
                details={"warning": warning.kind},
            )
            for warning in feature_warnings(sets)
            if warning.kind in ("constant_features", "storage_error", "flat_images")
        ]

    def _label_findings(self, arm: ProbedArm, names: Sequence[str]) -> list[Finding]:
        from importlib.util import find_spec

        evidence = self.evidence
        if find_spec("cleanlab") is None:
            return []
        decisions = arm.probe.out_of_fold[:, None, :]
        y = evidence.y.astype(np.int64)
        proba = calibrated(decisions, fit_temperature(decisions, y))
        return [label_finding(y, proba, names, evidence.task.classes)]

    def _when(self) -> Finding:
        evidence, default = self.evidence, self._default
        mine = default.feature_set.identity.architecture
        # Of untrained networks that of the same architecture, at all its taps.
        arms = [
            arm
            for arm in self.arms
            if arm.feature_set.is_baseline
            or (arm.role == "untrained" and arm.feature_set.identity.architecture == mine)
        ]
        without = {arm.name: arm.gains for arm in arms}
        if evidence.task.kind == "classification":
            without["largest class"] = self._floor
        commands = self.commands.without_transfer(default.feature_set)
        found = transfer_finding(
            default.gains,
            without,
            evidence.groups,
            name=default.name,
            score=SCORE_NAMES[evidence.task.kind],
            missing={role: command for role, command in commands.items() if role not in {arm.role for arm in arms}},
        )
        if not self.not_made:
            return found
        left = ", ".join(f"{role} (about {seconds:.0f} s)" for role, seconds in self.not_made.items())
        text = f"{found.text}; not made within the minutes: {left}"
        return replace(found, text=text, details={**found.details, "missing_seconds": dict(self.not_made)})

    def _what(self) -> Finding:
        if self.layers is not None:
            return self._scanned(self.layers)
        evidence, default, arms = self.evidence, self._default, self._pretrained
        measure = measure_of(evidence.task.kind, len(evidence.task.classes))
        predictions = [arm.probe.out_of_fold for arm in arms]
        if evidence.task.kind == "classification":
            predictions = [decisions.argmax(axis=1) for decisions in predictions]
        order = sorted({arm.feature_set.tap for arm in arms}, key=depth_of)
        candidates = [
            Candidate(
                name=arm.name,
                num_parameters=arm.feature_set.about.num_parameters,
                num_bytes=arm.feature_set.num_bytes,
                command=self.commands.train(arm.feature_set),
                order=order.index(arm.feature_set.tap),
                is_default=arm is default and arm.is_default,
                promises=self._promises(arm),
            )
            for arm in arms
        ]
        found = features_finding(evidence.y, predictions, candidates, measure, evidence.groups)
        if len(arms) > 1:
            return found
        # Nothing to compare with yet: one pass more gives all blocks of the network.
        return replace(found, next_command=self.commands.extract(arms[0].feature_set, "blocks"))

    def _scanned(self, scan: LayersScan) -> Finding:
        """Compare all blocks of the network with its default tap, on inputs that are computed for that alone."""
        evidence, default = self.evidence, self._default
        found = scan_layers(
            self.store, evidence, default.feature_set, scan, random_state=self.random_state, progress=self.progress
        )
        y, targets, folds = evidence.y[found.index], evidence.targets[found.index], evidence.folds[found.index]
        groups = None if evidence.groups is None else evidence.groups[found.index]
        feature_set, train = default.feature_set, self.commands.train(default.feature_set)
        every = {feature_set.tap: default.features()[found.index], **found.features}
        order = sorted(every, key=depth_of)
        candidates, predictions = [], []
        for tap, X in every.items():
            out = linear_probe(X, targets, folds).out_of_fold
            predictions.append(out.argmax(axis=1) if evidence.task.kind == "classification" else out)
            candidates.append(
                Candidate(
                    name=default.name if tap == feature_set.tap else f"{tap} of {feature_set.identity.backbone}",
                    num_parameters=feature_set.about.num_parameters,
                    num_bytes=2 * X.shape[1],
                    command=train if tap == feature_set.tap else self.commands.extract(feature_set, tap),
                    order=order.index(tap),
                    is_default=tap == feature_set.tap and default.is_default,
                )
            )
        measure = measure_of(evidence.task.kind, len(evidence.task.classes))
        finding = features_finding(y, predictions, candidates, measure, groups)
        details = {**finding.details, "scanned": list(found.features)}
        basis = f"{finding.basis}; {counted(len(found.features), 'layer', verb='was')} computed for this and not kept"
        return replace(finding, basis=basis, details=details)

    def _promises(self, arm: ProbedArm) -> dict[str, float | None]:
        """Return what is known of features without a probe."""
        evidence, some = self.evidence, slice(0, _PROMISE_ROWS)
        X = arm.features()[some]
        promises: dict[str, float | None] = {"log_me": log_me(X, evidence.targets[some])}
        if evidence.task.kind == "classification":
            promises["h_score"] = h_score(X, evidence.y[some].astype(np.int64))
        feature_set = arm.feature_set
        # What was published is of the default weights.
        own = feature_set.about.weights_source.startswith("file ")
        published = None if own else IMAGENET_ACCURACY.get(feature_set.identity.backbone)
        return {**promises, "imagenet_accuracy": published}

    def _how(self) -> Finding:
        evidence, arm = self.evidence, self._best
        errors = 1.0 - gains(evidence.y, arm.probe.in_sample, evidence.task.kind)
        command = self.commands.deeper(arm.feature_set)
        return depth_finding(errors, evidence.groups, name=arm.name, next_command=command)

    def _more_data(self) -> Finding:
        evidence, arm = self.evidence, self._best
        X, kept = arm.features(), some_rows(np.arange(len(evidence.rows)), _CURVE_ROWS, self.random_state)
        curve = learning_curve(
            X[kept],
            evidence.targets[kept],
            evidence.y[kept],
            lambda y, predicted: gains(y, predicted, evidence.task.kind),
            evidence.folds[kept],
            None if evidence.groups is None else evidence.groups[kept],
            penalty=arm.probe.penalty,
            random_state=self.random_state,
        )
        found = more_data_finding(
            curve, score=SCORE_NAMES[evidence.task.kind], n=len(kept), random_state=self.random_state
        )
        return replace(found, basis=f"{found.basis}, on {arm.name}")

    def _diagnosis(self) -> Finding:
        evidence, arm = self.evidence, self._best
        domain, target_rows = self.target or (None, np.empty(0, np.int64))
        target, target_groups = errors_on(evidence, arm, target_rows) if len(target_rows) else (None, None)
        others = errors_by_split(evidence, arm, random_state=self.random_state)
        if self.look_at_test:
            rows = rows_of_test_split(
                self.store, evidence.task, arm.feature_set, domain, random_state=self.random_state
            )
            # Few rows have no interval, and a gap is named by its interval only.
            others |= {"test": errors_on(evidence, arm, rows)} if len(rows) >= LEAST_GROUPS else {}
        feature_set = arm.feature_set
        commands = {"bias": self.commands.deeper(feature_set), "overfitting to dev": self.commands.label}
        if feature_set.identity.preprocess.modality == "image":  # of texts there are no views
            commands["variance"] = self.commands.extract(feature_set, feature_set.tap, "--views", "8")
        found = diagnosis_finding(
            1.0 - gains(evidence.y, arm.probe.in_sample, evidence.task.kind),
            1.0 - arm.gains,
            1.0 - self._floor,
            evidence.groups,
            target=target,
            target_groups=target_groups,
            target_name=domain or "target",
            others=others,
            commands=commands,
        )
        return replace(found, basis=f"{found.basis}; {arm.name}")

    def _adaptation(self) -> Finding | None:
        """Return whether a way to adapt is borne out by the target; None where there is no target."""
        evidence, target = self.evidence, self.target
        if target is None or evidence.task.kind != "classification":
            return None
        feature_set = self._best.feature_set
        try:
            report = adapt_heads(self.store, evidence.task, feature_set, target[0], random_state=self.random_state)
        except (RequestError, TaskError) as error:
            if "adaptation" in self.only:  # who asks by name is told what to mend; else other answers are worth having
                raise
            return Finding(
                question="adaptation",
                verdict="cannot tell",
                text=f"cannot tell whether adapting helps: {error}",
                n=len(target[1]),
                basis="samples of the target",
            )
        command = self.commands.train(feature_set, target_domain=target[0])
        return adaptation_finding(report, name=self._best.name, next_command=command)

    def label_next(self, count: int) -> Finding:
        """Name the samples without a label that are the most useful to label.

        Parameters
        ----------
        count : int
        """
        task, feature_set = self.evidence.task, self._best.feature_set
        if task.kind != "classification":
            raise RequestError(f"what to label next is told for tasks of classes; {task.name!r} is of kind {task.kind}")
        features = feature_set.open()
        found = [task.rows(features, split) for split in filter(task.has, FITTED)]
        rows, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        pool = rows_without_label(self.store, task, feature_set, self.random_state)
        X = read_views(features, np.concatenate([rows, pool]))[:, 0]
        known = np.arange(len(rows))
        chosen = choose_samples(X, known, y, len(task.classes), count, random_state=self.random_state) - len(rows)
        names = self.store.samples.uris_of(pool[chosen])
        command = self.commands.label
        return label_next_finding(names, len(rows), len(task.classes), len(pool), next_command=command)
