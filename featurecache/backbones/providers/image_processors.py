"""The preprocess that an image processor of transformers describes, or a refusal that names what has no counterpart.

transformers itself reads the file, in whatever edition it was written, so that sizes, defaults and old names are its
own affair. Here its fields become those of `PreprocessSpec`; classes with a rule of their own have an entry in `RULES`.
Whatever comes out is compared with what the processor makes of a few images before it is believed.
"""

from __future__ import annotations

import importlib
from typing import Any

from PIL import Image

from featurecache.backbones.providers import image_processor_rules as rules
from featurecache.backbones.providers import timm_models
from featurecache.backbones.providers.image_processor_rules import Settings, for_each_channel, refusal, sides_of
from featurecache.backbones.providers.reference_transform import Mismatch, check_same
from featurecache.errors import BackboneError, first_line
from featurecache.specs import PreprocessSpec

_BASIC = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"}
_BASIC |= {"do_normalize", "image_mean", "image_std", "do_pad", "pad_size"}
# Who wrote the file, and for whom.
_ENVELOPE = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys"}
_ENVELOPE |= {"use_fast", "_commit_hash", "name_or_path", "_processor_class", "_name_or_path", "transformers_version"}
# Of no account for one RGB image that goes in and one tensor that comes out.
_ELSEWHERE = {"do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping"}
_ELSEWHERE |= {"default_to_square", "image_seq_length", "num_image_tokens", "model_input_names", "num_channels"}
_ELSEWHERE |= {"do_reduce_labels", "reduce_labels", "do_convert_annotations", "format", "mask_size", "mask_pad_size"}
_ELSEWHERE |= {"keypoint_heatmap_downscale_factor", "keypoint_heatmap_sigma", "prompt_scale_to_meter", "ignore_index"}
_ELSEWHERE |= {"num_labels", "id2label", "label2id", "processor_class_name"}
_SHAPES = "makes inputs of different shapes, and all have one here; do_center_crop and crop_size give them one"
# Switches that do nothing while they are off, and the fields (or their beginnings) that then do nothing either.
_ALONE = ("do_pad", "do_flip_channel_order", "rescale_offset", "do_grayscale", "do_split_image", "do_align_long_axis")
_SWITCHES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_ALONE, "do_crop_margin", "do_thumbnail", "keep_aspect_ratio"), ()),
    "do_pan_and_scan": ("pan_and_scan_",),
    "crop_to_patches": ("min_patches", "max_patches", "use_covering_area_grid", "tile_size"),
    "split_image": ("split_resolutions",),
    "return_image_mask": ("input_size_patches", "total_mask_patches", "mask_group_"),
    "return_codebook_pixels": ("codebook_",),
}


def read_preprocess(transformers: Any, folder_or_name: str, name: str) -> PreprocessSpec:
    """Return the preprocess of a folder, or of a page of the hub.

    Parameters
    ----------
    transformers
        The package.
    folder_or_name
        What it is asked for.
    name
        Of the backbone, for messages.

    Raises
    ------
    BackboneError
        The processor does what no `PreprocessSpec` says, or is none of transformers.
    OSError
        There is no such file.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder_or_name, trust_remote_code=False)
    except (ValueError, ImportError, TypeError, AttributeError, KeyError, AssertionError) as error:
        raise BackboneError(
            f"{name}: transformers cannot read its preprocessor_config.json ({type(error).__name__}: "
            f"{first_line(error)}); write there an image_processor_type that it knows"
        ) from error
    return preprocess_of(processor, name)


def preprocess_of(processor: Any, name: str) -> PreprocessSpec:
    """Return the preprocess of a processor that is there already; see `read_preprocess`."""
    # transformers has each class in up to three editions, which do the same: with torch, with Pillow, with NumPy.
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    if kind == "TimmWrapperImageProcessor":
        # It keeps a data config of timm, and calls timm's transform of that.
        return timm_models.preprocess_of(importlib.import_module("timm"), processor.data_config, name)
    settings: Settings = {}
    for field, value in processor.to_dict().items():
        # Sizes have a class of their own in some editions; of these, what is given.
        if hasattr(value, "keys"):
            value = {key: value[key] for key in value.keys() if value[key] is not None}  # noqa: SIM118
        if value is not None:
            settings[field] = value
    preprocess = _translate(kind, settings, name)
    try:
        check_same(preprocess, lambda image: _output(processor, image))
    except Mismatch as mismatch:
        own = ", ".join(sorted(set(settings) - _ENVELOPE - _ELSEWHERE))
        raise BackboneError(
            f"{name}: image_processor_type {kind} in its preprocessor_config.json has a rule that is not known here: "
            f"{mismatch}. Its fields are {own}; write another type there if the network may see other images"
        ) from None
    return preprocess


def _output(processor: Any, image: Image.Image) -> Any:
    """Return what one image becomes, (C, H, W)."""
    try:
        output = processor(images=image, return_tensors="pt")
    # Somebody else's code with settings from anywhere.
    except Exception as error:
        raise Mismatch(f"it fails on an image ({type(error).__name__}: {first_line(error)})") from error
    values = output.get("pixel_values") if hasattr(output, "get") else None
    if values is None or getattr(values, "ndim", 0) != 4 or len(values) != 1:
        raise Mismatch("it does not make one array of one image")
    return values[0]


def _translate(kind: str, settings: Settings, name: str) -> PreprocessSpec:
    settings = _without_idle_switches(settings)
    if kind in rules.NOT_OBEYED and (field := rules.NOT_OBEYED[kind][0]) in settings:
        raise refusal(name, field, settings[field], rules.NOT_OBEYED[kind][1])
    fixed, rule = rules.ALWAYS.get(kind, {}), rules.RULES.get(kind)
    settings, understood = settings | fixed, {*_BASIC, *fixed}
    if rule is not None:
        settings, used = rule(dict(settings), name)
        understood |= used
    for field in sorted(set(settings) - understood - _ENVELOPE - _ELSEWHERE):
        if not _does_nothing(field, settings):
            raise refusal(name, field, settings[field], "is not obeyed here")
    return _spec(settings, name)


def _without_idle_switches(settings: Settings) -> Settings:
    idle = {switch for switch in _SWITCHES if not settings.get(switch)}
    followers = tuple(field for switch in idle for field in _SWITCHES[switch])
    return {
        field: value
        for field, value in settings.items()
        if field not in idle and not (followers and field.startswith(followers))
    }


def _does_nothing(field: str, settings: Settings) -> bool:
    """Tell whether sides are multiples anyway of what they are to be multiples of."""
    sides = sides_of(settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size"))
    if field not in ("ensure_multiple_of", "size_divisor") or sides is None:
        return False
    return all(side % settings[field] == 0 for side in sides)


def _spec(settings: Settings, name: str) -> PreprocessSpec:
    if not settings.get("do_resize"):
        raise refusal(name, "do_resize", settings.get("do_resize"), "leaves images at sizes of their own")
    if (resample := settings.get("resample", 2)) not in rules.INTERPOLATIONS:
        raise refusal(name, "resample", resample, "is a filter of Pillow that is not known here")
    mean, std = _affine(settings, name)
    return PreprocessSpec(
        **_geometry(settings, name),
        interpolation=rules.INTERPOLATIONS[resample],
        antialias=settings.get("antialias", True),
        **{field: settings[field] for field in rules.EXTRA_FIELDS if field in settings},
        channel_order=settings.get("channel_order", "rgb"),
        mean=mean,
        std=std,
    )


def _geometry(settings: Settings, name: str) -> Settings:
    """Return the fields that say where each pixel goes."""
    size = settings.get("size") or {}
    if "shortest_edge" in size and "longest_edge" in size:
        raise refusal(name, "size", size, _SHAPES)
    if settings.get("do_pad"):
        return _padded(settings, name)
    if settings.get("crop_first"):
        rounding = {"crop_rounding": "down", "resize_rounding": "down"}
        return {"resize": sides_of(size), "crop": sides_of(settings["crop_size"]), **rounding}
    crop = sides_of(settings.get("crop_size")) if settings.get("do_center_crop") else None
    if set(size) == {"height", "width"}:
        sides, mode = (size["height"], size["width"]), "squash"
    elif set(size) == {"shortest_edge"} and crop is not None:
        sides, mode = (size["shortest_edge"],) * 2, "shortest"
    else:
        raise refusal(name, "size", size, _SHAPES)
    if settings.get("do_center_crop") and crop is None:
        raise refusal(name, "crop_size", settings.get("crop_size"), "is no size")
    # transformers crops only where do_center_crop is on; else the resized image is the input.
    crop = crop or sides
    # A crop beyond the image is filled with zeros, as transformers does.
    larger = any(one > other for one, other in zip(crop, sides, strict=True))
    odd = mode == "shortest" or any((side - one) % 2 for one, side in zip(crop, sides, strict=True))
    return {
        "resize": sides,
        "crop": crop,
        "resize_mode": mode,
        "resize_rounding": settings.get("resize_rounding", "down"),
        "crop_rounding": "down" if odd else "nearest",
        "padding": "center" if larger else "none",
    }


def _padded(settings: Settings, name: str) -> Settings:
    """Return those of a processor that makes images fit into a frame, and fills it."""
    size, frame = settings.get("size") or {}, sides_of(settings.get("pad_size"))
    if set(size) == {"height", "width"} and frame in (None, (size["height"], size["width"])):
        # Images of one shape need no padding.
        return _geometry({**settings, "do_pad": False}, name)
    if set(size) == {"longest_edge"}:
        within = (size["longest_edge"],) * 2
    elif set(size) == {"max_height", "max_width"}:
        within = (size["max_height"], size["max_width"])
    else:
        raise refusal(name, "do_pad", True, "with this size is not obeyed here")
    if frame is None:
        raise refusal(name, "pad_size", None, "gives inputs of different shapes, and all have one here")
    return {
        "resize": within,
        "crop": frame,
        "resize_mode": "longest",
        "resize_rounding": settings.get("resize_rounding", "nearest"),
        "padding": settings.get("padding", "corner"),
        "fill_color": settings.get("fill_color", _zero_after_normalising(settings)),
    }


def _zero_after_normalising(settings: Settings) -> tuple[int, int, int]:
    """Return the colour that is nearest to zero once it has been normalised: filled in after all other steps."""
    if not settings.get("do_normalize"):
        return 0, 0, 0
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale") else 1.0
    red, green, blue = (min(max(round(one / scale), 0), 255) for one in for_each_channel(settings["image_mean"]))
    return red, green, blue


def _affine(settings: Settings, name: str) -> tuple[Any, Any]:
    """Return mean and standard deviation that do to ``pixel / 255`` what all steps together do to the pixel."""
    # Everything here works on pixel / 255; a processor may divide by 127.5, or by nothing.
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale") else 255.0
    if abs(factor - 1) < 1e-6:  # written with fewer digits than there are
        factor = 1.0
    offset, divisor = settings.get("offset", 0.0), for_each_channel(settings.get("last_divisor", 1.0))
    normalise = bool(settings.get("do_normalize"))
    if normalise and ("image_mean" not in settings or "image_std" not in settings):
        raise refusal(name, "image_mean", None, "is absent, and do_normalize is on")
    mean, std = (
        for_each_channel(settings[key] if normalise else usual) for key, usual in (("image_mean", 0), ("image_std", 1))
    )
    if len(mean) != 3 or len(std) != 3:
        raise refusal(name, "image_mean", mean, "has not three channels")
    if factor <= 0 or min(std) <= 0:
        field = "rescale_factor" if factor <= 0 else "image_std"
        raise refusal(name, field, settings.get(field), "is not positive")
    return (
        tuple((one - offset) / factor for one in mean),
        tuple(one * last / factor for one, last in zip(std, divisor, strict=True)),
    )
