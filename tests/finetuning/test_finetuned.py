"""TrainableLayers as estimators: what they learn, what they refuse, and what is left of them on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from featurecache.errors import HeadError, UnknownNameError
from featurecache.finetuning.factories import layer_factory
from featurecache.finetuning.library import LIBRARY, make_body
from featurecache.heads.encoding import decode_estimator, encode_estimator
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.gradient.datasets import Draw, InputDataset
from featurecache.heads.gradient.finetuned import FineTunedClassifier, FineTunedRegressor
from featurecache.heads.gradient.layer_training import AUGMENTATIONS
from featurecache.heads.gradient.trainable import TrainableLayers
from featurecache.heads.gradient.training import Schedule

SHAPE = (4, 6, 6)


def rows(count: int = 150, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps in which one channel is brighter, by class."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    X = rng.normal(size=(count, *SHAPE)).astype(np.float32)
    X[np.arange(count), y] += 0.7
    return X.reshape(count, -1), y


def make(num_outputs: int) -> TrainableLayers:
    body = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2))
    return TrainableLayers(body, nn.Linear(8, num_outputs), {"0.weight": 0, "0.bias": 0})


def seven(num_outputs: int) -> TrainableLayers:
    return TrainableLayers(nn.Flatten(), nn.Linear(144, 7))


def misfit(num_outputs: int) -> TrainableLayers:
    return TrainableLayers(nn.Linear(3, 3), nn.Linear(3, num_outputs))


def without_output(num_outputs: int) -> TrainableLayers:
    return TrainableLayers(nn.Sequential(nn.Flatten(), nn.Linear(144, num_outputs)), None)


def head(**params: Any) -> FineTunedClassifier:
    return FineTunedClassifier(make, shape=SHAPE, **{"learning_rate": 1e-2, "pretrained_factor": 1.0, **params})


# Each pair of values stands in one of these.
@pytest.mark.parametrize(
    ("start", "augment", "batch_norm"),
    [
        *(
            ("fresh", None, "frozen"),
            ("probe", None, "train"),
            ("fresh", "noise", "frozen"),
            ("probe", "noise", "train"),
        ),
        *(("fresh", "mixup", "train"), ("probe", "mixup", "frozen")),
        *(("fresh", "brightness", "train"), ("probe", "brightness", "frozen")),
    ],
)
def test_learns(start: str, augment: Any, batch_norm: Any) -> None:
    X, y = rows()
    fitted = head(start=start, augment=augment, batch_norm=batch_norm, epochs=12).fit(X, y)
    X_new, y_new = rows(seed=1)
    assert fitted.score(X_new, y_new) > 0.7
    assert np.mean(fitted.losses_[-5:]) < np.mean(fitted.losses_[:5])


def test_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    X, y = rows()
    one, same, other = (head(random_state=seed, epochs=2).fit(X, y) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.decision_function(X), same.decision_function(X))
    assert not np.array_equal(one.decision_function(X), other.decision_function(X))


def test_a_memory_map_gives_the_same_numbers(tmp_path: Path) -> None:
    X, y = rows()
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    one, other = head(epochs=2).fit(X, y), head(epochs=2).fit(mapped, y)
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(mapped))


def test_folds_are_fitted_as_if_their_rows_were_not_there() -> None:
    X, y = rows()
    fold = np.arange(len(y)) % 3
    ((_, fitted),) = head(epochs=2).fit_path(X, y, fold, [{"learning_rate": 0.01}])
    for number, each in enumerate(fitted):
        alone = head(epochs=2).fit(X[fold != number], y[fold != number])
        np.testing.assert_array_equal(each.predict_proba(X), alone.predict_proba(X))


def test_frozen_statistics_stay_and_trained_ones_move() -> None:
    X, y = rows()
    frozen, trained = head(epochs=2).fit(X, y), head(epochs=2, batch_norm="train").fit(X, y)
    assert frozen.fitted_layers.body[1].running_mean.abs().max() == 0
    assert trained.fitted_layers.body[1].running_mean.abs().max() > 0


def test_probe_start_is_a_linear_head_on_the_untrained_features() -> None:
    X, y = rows()
    fitted = head(start="probe", epochs=1, learning_rate=1e-12).fit(X, y)
    assert fitted.score(X, y) > 0.5
    assert head(start="fresh", epochs=1, learning_rate=1e-12).fit(X, y).score(X, y) < fitted.score(X, y)


def test_weights_count_rows() -> None:
    X, y = rows(60)
    weight = np.where(np.arange(60) < 30, 1.0, 0.0)
    weighted = head(epochs=3).fit(X, y, sample_weight=weight)
    alone = head(epochs=3).fit(X[:30], y[:30])
    np.testing.assert_allclose(weighted.predict_proba(X), alone.predict_proba(X), atol=1e-6)


def test_labels_and_numbers() -> None:
    X, _ = rows()
    several = (X.reshape(-1, *SHAPE).mean((2, 3))[:, :2] > 0.2).astype(int)
    fitted = head(epochs=12).fit(X, several)
    assert fitted.predict_proba(X).shape == (150, 2)
    assert (fitted.predict(X) == several).mean() > 0.7
    numbers = 1000 + 50 * X.reshape(-1, *SHAPE).mean((2, 3))[:, :2].astype(np.float64)
    for start in ("fresh", "probe"):
        regressor = FineTunedRegressor(
            make, shape=SHAPE, learning_rate=1e-2, pretrained_factor=1.0, start=start, epochs=12
        )
        assert regressor.fit(X, numbers).predict(X).shape == (150, 2)
        assert regressor.score(X, numbers) > 0.3
    assert regressor.set_params(epochs=1).fit(X, numbers[:, 0]).predict(X).shape == (150,)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_what_is_kept_gives_the_same_answers(kind: str) -> None:
    X, y = rows()
    said = {"classification": y, "multilabel": np.eye(3, dtype=int)[y], "regression": y.astype(float)}[kind]
    maker_of = FineTunedRegressor if kind == "regression" else FineTunedClassifier
    fitted = maker_of(make, shape=SHAPE, epochs=2, batch_norm="train").fit(X, said)
    back = decode_estimator(*encode_estimator(fitted))
    with pytest.raises(ValueError, match="no layers yet"):
        back.predict(X)
    back.attach(make(back.num_outputs))
    np.testing.assert_array_equal(back.predict(X), fitted.predict(X))
    with pytest.raises(ValueError, match="its layers have no"):
        back.attach(TrainableLayers(nn.Flatten(), nn.Linear(144, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names_": ["a", "a"]}, "do not belong together|not different"),
        ({"shape": (1, 2)}, "are not 144 numbers"),
        ({"shape": "wide"}, "shape of its activations"),
    ],
)
def test_a_strangers_record_is_refused(change: dict[str, Any], message: str) -> None:
    X, y = rows(30)
    fitted = head(epochs=1).fit(X, y)
    vars(fitted).update(change)
    with pytest.raises(HeadError, match=message):
        decode_estimator(*encode_estimator(fitted))


def test_numbers_that_are_not_finite_are_refused() -> None:
    X, y = rows(30)
    fitted = head(epochs=1).fit(X, y)
    fitted.arrays_[0][0] = np.nan
    with pytest.raises(HeadError, match="not finite"):
        decode_estimator(*encode_estimator(fitted))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"pretrained_factor": -1.0}, "pretrained_factor must be positive"),
        ({"layer_decay": np.nan}, "layer_decay must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"patience": 0}, "patience must be a whole number"),
        ({"warmup": 1.0}, "warmup must be from 0"),
        ({"batch_norm": "moving"}, "unknown batch_norm 'moving'; known: frozen, train"),
        ({"start": "warm"}, "unknown start 'warm'"),
        ({"augment": "flip"}, "unknown augment 'flip'"),
        ({"precision": "float8"}, "unknown precision 'float8'"),
        ({"factory": None}, "no layers to train"),
        ({"factory": seven}, r"make \(2, 7\) of two rows"),
        ({"factory": misfit}, r"do not take activations of shape \(4, 6, 6\)"),
        ({"factory": without_output, "start": "probe"}, "output layer"),
    ],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], message: str) -> None:
    X, y = rows(30)
    with pytest.raises(ValueError, match=message):
        clone(head()).set_params(**params).fit(X, y)


def test_training_that_diverges_says_at_which_step_and_where_the_last_good_place_is(tmp_path: Path) -> None:
    X, y = rows()
    wild = head(learning_rate=1e30, clip=0.0, warmup=0.0, checkpoints=str(tmp_path), checkpoint_seconds=0.0)
    with pytest.raises(
        HeadError, match=r"diverges at step \d+ of \d+ with the learning rate 1e\+30; use a smaller"
    ) as raised:
        fit_estimator(wild, X, y, name="tail")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(raised.value)


def test_a_training_goes_on_from_where_it_was(tmp_path: Path) -> None:
    """Stopped at each of several steps, by an error in the middle of a batch; the numbers are those without a stop."""
    X, y = rows(1200)
    settings = {"epochs": 2, "batch_size": 200, "augment": "mixup", "batch_norm": "train"}
    whole = head(**settings).fit(X, y)
    place = {"checkpoints": str(tmp_path), "checkpoint_seconds": 0.0}
    for stop_at in (2, 3, 4):

        def stopping(num_outputs: int, stop_at: int = stop_at) -> TrainableLayers:
            layers, seen = make(num_outputs), [0]

            def count(module: nn.Module, _inputs: Any) -> None:
                seen[0] += module.training
                if seen[0] > stop_at:
                    raise KeyboardInterrupt

            layers.register_forward_pre_hook(count)
            return layers

        with pytest.raises(KeyboardInterrupt):
            head(**settings, **place, resume=True).set_params(factory=stopping).fit(X, y)
    resumed = head(**settings, **place, resume=True).fit(X, y)
    assert resumed.losses_ == whole.losses_
    for one, other in zip(resumed.arrays_, whole.arrays_, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_rows", [40, 1200])
def test_of_a_training_that_is_done_no_more_is_kept_than_its_result(tmp_path: Path, num_rows: int) -> None:
    X, y = rows(num_rows)
    y = np.random.default_rng(0).permutation(y)  # so that the last epoch is not the best
    settings: dict[str, Any] = {"epochs": 6, "learning_rate": 0.05, "checkpoints": str(tmp_path), "batch_size": 100}
    settings["checkpoint_seconds"] = 1e9
    whole = head(**settings).fit(X, y)
    (kept,) = tmp_path.iterdir()
    size = sum(array.nbytes for array in whole.arrays_)
    assert size <= kept.stat().st_size < size + 20_000  # names and losses
    again = head(**settings, resume=True).fit(X, y)
    assert again.losses_ == whole.losses_
    for one, other in zip(again.arrays_, whole.arrays_, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_training_is_stopped_by_is_seen_as_it_is() -> None:
    """Views are for what is fitted on; each epoch is evaluated on plain inputs."""
    X, y = rows(1200)
    seen: dict[Draw | None, set[int]] = {}

    class Watched(InputDataset):
        def read(self, selected: np.ndarray, draw: Draw | None = None) -> torch.Tensor:
            indices = self.indices[selected]
            seen.setdefault(draw, set()).update(indices.tolist())
            return torch.from_numpy(X[indices]).view(len(indices), *SHAPE)

    head(epochs=2, augment="views", random_state=3).fit(Watched(np.arange(len(X)), SHAPE), y)
    assert set(seen) == {None, Draw(3, 0), Draw(3, 1)}
    assert seen[Draw(3, 0)] == seen[Draw(3, 1)]
    assert len(seen[None]) >= 100
    assert seen[None] | seen[Draw(3, 0)] == set(range(1200))
    assert not seen[None] & seen[Draw(3, 0)]


def test_of_activations_there_are_no_other_views() -> None:
    X, y = rows(30)
    with pytest.raises(ValueError, match="shows another view of each input in every epoch; train on inputs"):
        head(epochs=1, augment="views").fit(X, y)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_layers_that_object_only_in_training_are_answered_in_one_line(where: str) -> None:
    class Objecting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, training: bool) -> torch.Tensor:
            if training and where == "forward":
                raise RuntimeError("not like this\nand a long story")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
            raise RuntimeError("not like this\nand a long story")

    def objecting(num_outputs: int) -> TrainableLayers:
        layers = make(num_outputs)
        layers.register_forward_hook(lambda module, _, out: Objecting.apply(out, module.training))
        return layers

    X, y = rows()
    with pytest.raises(
        HeadError, match=r"the layers fail at step 1, on activations of shape .*: not like this\. Choose"
    ):
        fit_estimator(head().set_params(factory=objecting), X, y, name="tail")


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    X, y = rows()
    place = {"checkpoints": str(tmp_path), "checkpoint_seconds": 0.0, "epochs": 1}
    head(**place).fit(X, y)
    for other in (
        head(**place, resume=True, learning_rate=0.5).fit(X, y),
        head(**place, resume=True).fit(X, 2 - y),
        head(**place, resume=True).fit(X[::-1].copy(), y),
    ):
        assert other.n_iter_ == 5
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_checkpoint_is_not_gone_on_with(tmp_path: Path) -> None:
    X, y = rows()
    place = {"checkpoints": str(tmp_path), "checkpoint_seconds": 0.0, "epochs": 1}
    whole = head(**place).fit(X, y)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(head(**place, resume=True).fit(X, y).arrays_[0], whole.arrays_[0])


def test_rows_are_held_out_to_stop_by_and_the_best_epoch_is_kept() -> None:
    X, y = rows(1500)
    rng = np.random.default_rng(0)
    noisy = rng.permutation(y)
    fitted = head(epochs=50, patience=2, learning_rate=0.05, batch_size=100).fit(X, noisy)
    assert fitted.n_iter_ < 50 * -(-1350 // 100)
    assert fitted.predict_proba(X).max() < 0.9


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("shape", [(4, 6, 6), (5, 8), (12,)])
def test_library_learns_or_says_what_it_is_for(name: str, shape: tuple[int, ...]) -> None:
    X, y = rows(90)
    X = np.repeat(X, 2, axis=1)[:, : int(np.prod(shape))]
    if (name, len(shape)) in {("layers:conv", 2), ("layers:conv", 1), ("layers:transformer", 1)}:
        with pytest.raises(HeadError, match="try layers:mlp"):
            layer_factory(name, "tap:none", shape, None)
        return
    fitted = FineTunedClassifier(layer_factory(name, "tap:none", shape, None), shape=shape, epochs=10).fit(X, y)
    assert fitted.predict(X).shape == (90,)
    assert np.mean(fitted.losses_[-3:]) < np.mean(fitted.losses_[:3])


def test_unknown_layers() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layers 'covn'; did you mean 'conv'"):
        make_body("covn", (4, 6, 6))


def test_learning_rates_fall_from_the_last_layer_to_the_first() -> None:
    """With plain steps of a known length the first layers have moved less."""
    body = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))

    def layers(num_outputs: int) -> TrainableLayers:
        groups = {name: int(name[0]) for name, _ in body.named_parameters()}
        return TrainableLayers(body, nn.Linear(6, num_outputs), groups)

    before = [layer.weight.detach().clone() for layer in body]
    X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    tuned = FineTunedClassifier(
        layers, shape=(6,), layer_decay=0.1, pretrained_factor=0.5, epochs=1, batch_size=64, warmup=0.0,
        weight_decay=0.0, learning_rate=0.01,
    )  # fmt: skip
    tuned.fit(X, np.arange(64) % 2)
    # The first step of Adam is as long as the learning rate, wherever there is a gradient.
    moved = [float((layer.weight.detach() - old).abs().max()) for layer, old in zip(body, before, strict=True)]
    np.testing.assert_allclose(moved, [0.01 * 0.5 * 0.01, 0.01 * 0.5 * 0.1, 0.01 * 0.5], rtol=0.02)


def test_the_learning_rate_warms_up_and_ends_at_nothing() -> None:
    schedule = Schedule(num_steps=50, steps_per_round=10, warmup=0.2)
    factors = [schedule.rate_factor(step) for step in range(50)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) == factors[10] == 1.0
    assert factors[-1] < 0.01


def test_an_epoch_is_all_rows_once_in_batches_of_about_the_same_size() -> None:
    """A last batch of a single row would upset batch norm."""
    seen: list[list[int]] = []

    class Watched(InputDataset):
        def read(self, selected: np.ndarray, draw: Draw | None = None) -> torch.Tensor:
            seen.append(self.indices[selected].tolist())
            return torch.zeros(len(selected), *SHAPE)

    head(epochs=1, batch_size=10).fit(Watched(np.arange(101), SHAPE), np.arange(101) % 3)
    sizes = {len(batch) for batch in seen}
    assert max(sizes) - min(sizes) <= 1
    assert sorted(index for batch in seen for index in batch) == list(range(101))


@pytest.mark.parametrize("shape", [(3, 5, 5), (7, 3), (12,)])
def test_augmentation_stays_near_and_in_range(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, *shape)
    bright, _ = AUGMENTATIONS["brightness"](x)
    flat, before = bright.flatten(1), x.flatten(1)
    assert (flat.amin(1) >= before.amin(1)).all()
    assert (flat.amax(1) <= before.amax(1)).all()
    assert ((bright - x).flatten(1).abs().amax(1) <= 0.1 * (before.amax(1) - before.amin(1)) + 1e-6).all()
    noisy, _ = AUGMENTATIONS["noise"](x)
    assert 0 < float((noisy - x).std()) < 0.3
    mixed, pairs = AUGMENTATIONS["mixup"](x)
    assert pairs is not None
    share, others = (each.view(-1, *[1] * len(shape)) for each in pairs)
    torch.testing.assert_close(mixed, share * x + (1 - share) * x[others.flatten()])


def test_predicting_leaves_the_rows_alone() -> None:
    X, y = rows(30)
    before = X.copy()
    in_place = FineTunedClassifier(
        lambda k: TrainableLayers(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), nn.Linear(144, k)),
        shape=SHAPE,
        epochs=1,
    )
    in_place.fit(X, y).predict(X)
    np.testing.assert_array_equal(X, before)


class Drawn(nn.Module):
    """A projection that is drawn and never trained, a buffer that is drawn, and a parameter that nobody uses."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.fixed = nn.Linear(144, 20)
        self.fixed.requires_grad_(False)
        self.register_buffer("shift", torch.randn(20))
        self.output, self.unused = nn.Linear(20, num_outputs), nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.fixed(x.flatten(1)) + self.shift)


def test_what_is_drawn_and_not_trained_is_kept_too(tmp_path: Path) -> None:
    X, y = rows(60)
    place = {"checkpoints": str(tmp_path), "checkpoint_seconds": 0.0, "epochs": 2, "shape": SHAPE}
    fitted = FineTunedClassifier(lambda k: TrainableLayers(Drawn(k), None), **place).fit(X, y)
    back = decode_estimator(*encode_estimator(fitted))
    torch.manual_seed(99)
    back.attach(TrainableLayers(Drawn(3), None))
    np.testing.assert_array_equal(back.predict_proba(X), fitted.predict_proba(X))
    again = FineTunedClassifier(lambda k: TrainableLayers(Drawn(k), None), **place, resume=True).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))


def test_a_head_of_an_earlier_release_does_not_end_in_what_joins_several_output_layers() -> None:
    """Only heads that say so do; the others go on as they were trained."""
    X, y = rows(30)
    plain = head(epochs=1).fit(X, y)
    joined = head(epochs=1).set_params(factory=lambda k: joining(k)).fit(X, y)
    assert [getattr(decode_estimator(*encode_estimator(each)), "joined_", False) for each in (plain, joined)] == [
        False,
        True,
    ]
    assert "joined_" not in encode_estimator(plain)[0]["state"]
    joined.joined_ = "yes"
    with pytest.raises(HeadError, match="the joined_ of its FineTunedClassifier are not numbers"):
        decode_estimator(*encode_estimator(joined))


def joining(num_outputs: int) -> TrainableLayers:
    return TrainableLayers(nn.Flatten(), nn.Linear(144, num_outputs), joined=True)


def test_class_weights_are_by_label() -> None:
    X, y = rows(60)
    named = np.array(["a", "b", "c"])[y]
    heavy = head(epochs=5, class_weight={"b": 100.0}).fit(X, named)
    assert (heavy.predict(X) == "b").mean() > 0.8


def own_with_norm(num_outputs: int) -> TrainableLayers:
    norm = nn.BatchNorm2d(4)
    return TrainableLayers(nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_outputs)), None)


def test_norms_of_new_layers_learn_their_statistics(tmp_path: Path) -> None:
    """Those of a fresh norm are mean 0 and variance 1, which no activations have."""
    X, y = rows()
    X = 100 + 30 * X
    settings = {"shape": SHAPE, "learning_rate": 0.02, "epochs": 20}
    fitted = FineTunedClassifier(own_with_norm, **settings).fit(X, y)
    assert fitted.score(X, y) > 0.7
    back = decode_estimator(*encode_estimator(fitted))
    back.attach(own_with_norm(3))
    np.testing.assert_array_equal(back.predict_proba(X), fitted.predict_proba(X))


def test_weights_count_between_batches_and_not_only_within_them() -> None:
    """With batches of one row a weight that is divided by its own sum would be nothing."""
    X, y = rows(60)
    heavy = np.where(y == 1, 50.0, 1.0)
    fitted = head(epochs=3, batch_size=1).fit(X, y, sample_weight=heavy)
    assert (fitted.predict(X) == 1).mean() > 0.8


def test_rows_without_weight_are_not_there_for_folds_either() -> None:
    X, y = rows(60)
    weight = np.where(np.arange(60) < 40, 1.0, 0.0)
    fold = np.arange(60) % 2
    ((_, fitted),) = head(epochs=2).fit_path(X, y, fold, [{"learning_rate": 0.01}], sample_weight=weight)
    for number, each in enumerate(fitted):
        alone = head(epochs=2).fit(X[(fold != number) & (weight > 0)], y[(fold != number) & (weight > 0)])
        np.testing.assert_array_equal(each.predict_proba(X), alone.predict_proba(X))


def test_a_setting_that_diverges_leaves_and_the_others_stay() -> None:
    X, y = rows(60)
    wild, tame = {"learning_rate": 1e30}, {"learning_rate": 0.01}
    untamed = head(epochs=2, clip=0.0, warmup=0.0)
    found = list(untamed.fit_path(X, y, np.full(60, -1), [wild, tame]))
    assert [setting for setting, _ in found] == [tame]
    with pytest.raises(ValueError, match="diverges"):
        list(untamed.fit_path(X, y, np.full(60, -1), [wild]))


def test_layers_may_keep_what_they_computed_from_one_pass_to_the_next() -> None:
    """Positions that are made at the first call, in a dry run, are a part of later steps."""

    class Lazy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "places"):
                self.places = torch.linspace(0, 1, 144) * torch.ones(1)
            return super().forward(x.flatten(1) * self.places)

    X, y = rows(30)
    FineTunedClassifier(lambda k: TrainableLayers(Lazy(144, k), None), shape=SHAPE, epochs=1).fit(X, y).predict(X)


def test_the_first_linear_head_never_divides_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows(60)
    group = np.arange(60) // 6
    from featurecache.heads.gradient import linear_start

    seen: list[Any] = []
    fit = linear_start.LogisticProbe.fit

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["groups"])
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(linear_start.LogisticProbe, "fit", spy)
    head(epochs=1, start="probe").fit(X, y, groups=group)
    np.testing.assert_array_equal(seen[0], group)
