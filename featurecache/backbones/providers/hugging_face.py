"""Encoders of images or texts of transformers, ``hf:NAME`` or ``hf:FOLDER``; the extra ``hf``.

A folder holds what a page of the hub holds: ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` or,
for texts, ``tokenizer.json``.
Code that comes with a model is never run, and only safetensors are read.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from featurecache.backbones.provider import EarlierDefault, Provided, Provider
from featurecache.backbones.providers.hub_access import quick_hub
from featurecache.backbones.providers.image_processor_rules import INTERPOLATIONS
from featurecache.backbones.providers.image_processors import read_preprocess
from featurecache.backbones.providers.reference_transform import changed_rules
from featurecache.backbones.providers.text_encoders import ReadJson, folder_reader, is_text_encoder, read_text_settings
from featurecache.backbones.torchvision_compat import import_dependent
from featurecache.backbones.weights.checkpoints import Checkpoint
from featurecache.backbones.weights.key_prefixes import choose_section
from featurecache.errors import BackboneError, WeightsError, first_line
from featurecache.hashing import digest_file, digest_json
from featurecache.specs import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec

PREFIX = "hf:"
_FILES = ("config.json", "model.safetensors", "preprocessor_config.json (images) or tokenizer.json (texts)")
# Two-tower models: only the image tower is needed.
_TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel", "siglip2": "SiglipVisionModel"}
# Encoders and decoders: only the encoder is needed.
_TEXT_TOWERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
_NO_CLASS_TOKEN = {"siglip", "siglip2", "siglip_vision_model", "ijepa"}
# Never run a model's own code; tell what does not fit instead of raising, so that one check covers all of it.
_STRICT = {"trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}


class HuggingFaceProvider(Provider):
    """Builds ``hf:NAME``."""

    packages = ("transformers", "tokenizers", "torchvision")

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build the network that ``config.json`` describes.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        transformers = import_dependent("transformers", "hf")
        folder = Path(name).expanduser()
        with _quiet(transformers):
            config = _config(transformers, name)
            kind = _class(transformers, config)
            settings = getattr(config, "vision_config", config) if "Vision" in kind.__name__ else config
            if pretrained:
                module = _pretrained(kind, name, settings, keep_classifier=keep_classifier)
            else:
                module = kind(settings)
        classifiers = _classifiers(module)
        of_classes = "ForImageClassification" in type(module).__name__
        if not classifiers and keep_classifier and not of_classes:
            raise WeightsError(f"{PREFIX}{name} has no output layer")
        provide = partial(
            Provided,
            module=module,
            classifiers=classifiers or (None if of_classes else ()),
            weights_source=f"transformers {name}" if not folder.is_dir() else f"transformers folder {folder.name}",
            load_file=None
            if weights is None
            else partial(_load_file, kind, settings, module.state_dict(), keep_classifier=keep_classifier),
            identity_name=f"{PREFIX}{folder.resolve().name}" if folder.is_dir() else None,
        )
        if not is_text_encoder(config):
            num_prefix_tokens = _num_prefix_tokens(settings, module)
            return _with_image_preprocess(
                transformers, name, settings, partial(provide, num_prefix_tokens=num_prefix_tokens)
            )
        return provide(**vars(read_text_settings(PREFIX + name, config, _reader(name))))

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the files of a folder; which files the hub's cache uses is known to transformers only."""
        folder = Path(name).expanduser()
        files = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors"))
        if not folder.is_dir() or not files:
            return None
        files += sorted(folder.glob("1_Pooling/*.json"))  # says which tap `default` is
        return digest_json("hf-files", 1, {str(file.relative_to(folder)): digest_file(file) for file in files})

    def reproducible(self, name: str) -> bool:
        """The architecture is pinned by the version and by ``config.json``, which is digested for folders only."""
        return Path(name).expanduser().is_dir()


def _config(transformers: Any, name: str) -> Any:
    try:
        with quick_hub():
            return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    # The hub client, its HTTP library and json each raise their own here.
    except Exception as error:
        raise _unavailable(name, error) from error


def _class(transformers: Any, config: Any) -> Any:
    # A configuration names classes as text: what is not a class of transformers' own is passed over, never imported.
    tower = _TOWERS.get(config.model_type) or _TEXT_TOWERS.get(config.model_type)
    names = [name for name in config.architectures or () if "ForImageClassification" in name]
    for name in [tower] if tower else names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    try:
        return transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        raise BackboneError(f"transformers knows no encoder for a {config.model_type}") from None


def _pretrained(kind: Any, name: str, config: Any, *, keep_classifier: bool) -> Any:
    try:
        with quick_hub():
            module, report = kind.from_pretrained(name, config=config, use_safetensors=True, **_STRICT)
    # The hub client, its HTTP library, json and safetensors each raise their own here.
    except Exception as error:
        raise _unavailable(name, error) from error
    _check_complete(module, report, PREFIX + name, keep_classifier=keep_classifier)
    return module


def _load_file(kind: Any, config: Any, own: Mapping[str, Any], checkpoint: Checkpoint, *, keep_classifier: bool) -> Any:
    """Load a file by transformers' rules: the names in published files are older than those of its networks."""
    state = choose_section(checkpoint, own, kind.__name__)
    with _quiet(import_dependent("transformers", "hf")):
        module, report = kind.from_pretrained(None, config=config, state_dict=state, **_STRICT)
    _check_complete(module, report, str(checkpoint.path), keep_classifier=keep_classifier)
    return module


def _check_complete(module: Any, report: Mapping[str, Any], what: str, *, keep_classifier: bool) -> None:
    """Refuse weights with gaps: transformers fills them with random numbers, and goes on."""
    forgiven = () if keep_classifier else _classifiers(module)
    gaps = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if any(key.startswith("pooler.") for key in gaps):
        # Many encoders were published without the layer that their class puts on top; it does not touch the features.
        module.pooler = None
        gaps = [key for key in gaps if not key.startswith("pooler.")]
    if gaps := [key for key in gaps if not key.startswith(forgiven)]:
        raise WeightsError(
            f"weights of {what} do not fit {type(module).__name__}: {len(gaps)} missing or of another shape "
            f"({gaps[0]}, ...), {len(report['unexpected_keys'])} unexpected"
        )


def _unavailable(name: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{PREFIX}{name} cannot be loaded ({type(error).__name__}: {first_line(error)}): bring {', '.join(_FILES)} "
        f"from its page on the hub into a folder on this machine, under these names, and use {PREFIX}FOLDER"
    )


def _classifiers(module: Any) -> tuple[str, ...]:
    present = {name for name, _ in module.named_children()}
    return tuple(name for name in ("classifier", "cls_classifier", "distillation_classifier") if name in present)


def _num_prefix_tokens(config: Any, module: Any) -> int:
    """Count the tokens in front of the patches by the network's own parameters."""
    if config.model_type in _NO_CLASS_TOKEN:
        return 0
    leaves = {path.rpartition(".")[2] for path, _ in module.named_parameters()}
    num_single = len(leaves & {"cls_token", "class_embedding", "distillation_token"})
    return num_single + int(getattr(config, "num_register_tokens", 0) or 0)


def _with_image_preprocess(transformers: Any, name: str, settings: Any, provide: Callable[..., Provided]) -> Provided:
    """Add the preprocess of images, or why it is refused and what earlier releases took for it."""
    before = _preprocess_before(name, settings)
    try:
        with quick_hub():
            preprocess = read_preprocess(transformers, name, PREFIX + name)
    except OSError as error:
        raise _unavailable(name, error) from error
    except BackboneError as refusal:
        if before is None:
            raise
        now = EarlierDefault(
            kind="preprocess", now=f"this preprocess would be refused now ({refusal})", preprocess=before
        )
        return provide(preprocess=before, refusal=refusal, earlier=(now,))
    return provide(preprocess=preprocess, earlier=changed_rules(before, preprocess, "transformers' own processor"))


def _reader(name: str) -> ReadJson:
    """Return what reads the JSON files of a folder, or of a page of the hub."""
    if (folder := Path(name).expanduser()).is_dir():
        return folder_reader(folder)

    def read(file: str) -> Mapping[str, Any] | None:
        missing = importlib.import_module("huggingface_hub.errors").EntryNotFoundError
        try:
            with quick_hub():
                path = importlib.import_module("huggingface_hub").hf_hub_download(name, file)
            return dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except missing:  # the page is there, and has no such file; or offline, and nobody knows
            return None
        except Exception as error:
            raise _unavailable(name, error) from error

    return read


def _preprocess_before(name: str, config: Any) -> PreprocessSpec | None:
    """Return what earlier releases took for the preprocess: the centre, and few of the fields."""
    try:
        if (settings := _reader(name)("preprocessor_config.json")) is None:
            return None
        size = _side(settings.get("size")) or _side(getattr(config, "image_size", None)) or 224
        crop = _side(settings.get("crop_size")) if settings.get("do_center_crop") else None
        if (share := settings.get("crop_pct")) and size < 384:
            size, crop = int(size / share), size
        return PreprocessSpec(
            resize=max(size, crop or 0),
            crop=crop or size,
            interpolation=INTERPOLATIONS[settings.get("resample", 2)],
            mean=tuple(settings.get("image_mean") or IMAGENET_MEAN),
            std=tuple(settings.get("image_std") or IMAGENET_STD),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # they refused it, or fell over it


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, (list, tuple)):
        size = size[0]
    return int(size) if size else None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from reporting on stderr what is an error or a note here."""
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        log.enable_progress_bar()
