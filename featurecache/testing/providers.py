"""What the backbones of every provider do.

Axes: B batch.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from featurecache.backbones.backbone import Backbone, weights_digest
from featurecache.backbones.dry_run import PRE_LOGITS, dry_run, example_inputs
from featurecache.backbones.input_kinds import input_kind_of, is_text
from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.backbones.suggestions import suggested_nodes
from featurecache.backbones.taps import DEFAULT, Tap, TappedBackbone, resolve_taps
from featurecache.errors import FeatureCacheError
from featurecache.specs import BackboneRequest, FeatureIdentity


class ProviderContract:
    """Laws of `featurecache.backbones.provider.Provider`; a subclass says which backbone to ask for.

    Attributes
    ----------
    draws_weights : bool
        Whether it builds networks whose weights are as their constructors draw them (``--init random``).
    """

    draws_weights: ClassVar[bool] = True

    def make_request(self, folder: Path) -> BackboneRequest:
        """Return the request for a small backbone that needs no network: of a file, or with ``init="random"``.

        Parameters
        ----------
        folder : Path
            Empty, for a file of weights, say.
        """
        # Not abstract: pytest would pass over a subclass that forgot it, without a word.
        raise NotImplementedError(f"{type(self).__name__} is to define make_request, which this contract asks")

    @pytest.fixture
    def request_(self, tmp_path: Path) -> BackboneRequest:
        """The request of a test."""
        folder = tmp_path / "backbone"
        folder.mkdir()
        return self.make_request(folder)

    def test_a_request_is_the_same_backbone_each_time(self, request_: BackboneRequest) -> None:
        first, second = load_backbone(request_), load_backbone(request_)
        assert first.identity == second.identity
        assert first.identity.fingerprint == second.identity.fingerprint
        assert first.identity.weights == weights_digest(first.module) == weights_digest(second.module)
        assert request_digest(request_) == request_digest(request_)

    def test_weights_that_are_drawn_follow_the_seed(self, request_: BackboneRequest) -> None:
        drawn = [replace(request_, init="random", weights=None, weights_key=None, seed=seed) for seed in (3, 3, 4)]
        if not self.draws_weights:
            with pytest.raises(FeatureCacheError) as raised:
                load_backbone(drawn[0])
            assert "\n" not in str(raised.value)
            return
        before = torch.get_rng_state()
        first, again, other = (load_backbone(request).identity for request in drawn)
        assert torch.equal(torch.get_rng_state(), before)  # the caller's own draws go on as if nothing had been
        assert first == again
        assert first.weights != other.weights
        assert first.architecture == other.architecture

    def test_it_is_frozen(self, request_: BackboneRequest) -> None:
        module = load_backbone(request_).module
        assert not [path for path, layer in module.named_modules() if layer.training]
        assert not [path for path, parameter in module.named_parameters() if parameter.requires_grad]

    def test_preprocess_is_declared(self, request_: BackboneRequest) -> None:
        backbone = load_backbone(request_)
        value = json.loads(json.dumps(backbone.identity.to_json()))
        assert FeatureIdentity.from_json(value) == backbone.identity
        assert backbone.identity.preprocess == backbone.preprocess
        assert is_text(backbone.preprocess) == (backbone.tokenizer is not None)

    def test_taps_are_there_with_the_shapes_that_they_state(self, request_: BackboneRequest) -> None:
        backbone = load_backbone(request_)
        taps = _taps(backbone)
        features = _features(backbone, taps, example_inputs(backbone, 2))
        assert {name: tuple(values.shape[1:]) for name, values in features.items()} == {
            tap.name: tap.shape for tap in taps
        }
        assert all(torch.isfinite(values).all() for values in features.values())

    def test_features_are_the_same_twice_and_in_batches_of_any_size(self, request_: BackboneRequest) -> None:
        backbone = load_backbone(request_)
        taps, inputs = _taps(backbone), example_inputs(backbone, 5)
        first, second = (_features(backbone, taps, inputs) for _ in range(2))
        batches = [_features(backbone, taps, batch) for batch in inputs.split([1, 3, 1])]
        for name, features in first.items():
            assert torch.equal(features, second[name])
            # The last bits of float32 may depend on the size of a batch.
            atol = 1e-5 * float(features.abs().max())
            torch.testing.assert_close(torch.cat([batch[name] for batch in batches]), features, rtol=0, atol=atol)

    def test_features_are_the_input_of_the_output_layer(self, request_: BackboneRequest) -> None:
        backbone = load_backbone(request_)
        if len(backbone.output_layers) != 1 or backbone.classifier is None:
            assert backbone.default.tap is None or resolve_taps(backbone, [DEFAULT])
            return
        whole, inputs = load_backbone(request_, keep_classifier=True), example_inputs(backbone, 2)
        taps = resolve_taps(backbone, [f"{PRE_LOGITS}:none"])
        features = _features(backbone, taps, inputs)[taps[0].name]
        layer, outputs = whole.module.get_submodule(backbone.classifier), list[Tensor]()
        # A copy: the next layer may work in place.
        layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.clone()))
        with torch.inference_mode():
            input_kind_of(whole.preprocess).call(whole.module, inputs)
            found = layer(features)
        torch.testing.assert_close(found, outputs[0], rtol=0, atol=1e-5 * float(outputs[0].abs().max()))


def _taps(backbone: Backbone) -> tuple[Tap, ...]:
    """Return the default tap, where there is one, and all that are suggested."""
    seen = dry_run(backbone)
    groups = [group for group, nodes in suggested_nodes(backbone, seen).items() if nodes]
    default = [DEFAULT] if backbone.default.tap is not None else []
    return resolve_taps(backbone, [*default, *groups], seen=seen)


def _features(backbone: Backbone, taps: tuple[Tap, ...], inputs: Tensor) -> dict[str, Tensor]:
    """Return features (B, ...) by tap."""
    with torch.inference_mode():
        return TappedBackbone(backbone, taps)(inputs)  # type: ignore[no-any-return]
