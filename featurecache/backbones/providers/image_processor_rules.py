"""Rules of single image processors of transformers, rewritten in the fields that all of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featurecache.errors import BackboneError
from featurecache.specs import Interpolation

Settings = dict[str, Any]
INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
EXTRA_FIELDS = ("trim_margin", "first_resize", "first_interpolation", "crop_first", "alignment")
"""Of a `PreprocessSpec`, those that no processor has under a name of its own."""
_SLANEXT_TOKENS = {"td_token", "bos_id", "eos_id"}
_PER_CHANNEL = ("image_mean", "image_std")


def refusal(name: str, field: str, value: Any, why: str) -> BackboneError:
    """Return the error of a field that cannot be obeyed.

    Parameters
    ----------
    name
        Of the backbone.
    field, value
        In its file.
    why
        The rest of a sentence that begins with both.
    """
    return BackboneError(
        f"{name}: {field} {str(value)[:80]} in its preprocessor_config.json {why}; change it there if the network may "
        "see other images than it was trained on"
    )


def sides_of(size: Any) -> tuple[int, int] | None:
    """Return height and width, where a size names both."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    return None


def for_each_channel(value: Any) -> tuple[float, ...]:
    """Return a number for each channel, as many as are given; a single number stands for all three."""
    return tuple(float(number) for number in value) if isinstance(value, list | tuple) else (float(value),) * 3


Rule = Callable[[Settings, str], tuple[Settings, set[str]]]
"""Rewrites the settings of a class in basic ones; returns them, and the fields that are dealt with."""


def _convnext(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    side = (settings.get("size") or {}).get("shortest_edge")
    if side is None:
        raise refusal(name, "size", settings.get("size"), "names no shortest_edge")
    # As the class itself: large inputs are squeezed to a square, smaller ones cropped from a larger image.
    if side >= 384:
        settings |= {"size": {"height": side, "width": side}}
    else:
        size = {"shortest_edge": int(side / settings.get("crop_pct", 224 / 256))}
        settings |= {"size": size, "do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return settings, {"crop_pct"}


def _poolformer(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    size, share = settings.get("size") or {}, settings.get("crop_pct")
    if share is not None:
        side = size.get("shortest_edge") or size.get("height")
        if side is None or size.get("width", side) != side:
            raise refusal(name, "size", size, "with crop_pct is not obeyed here")
        settings |= {"size": {"shortest_edge": int(side / share)}}
    return settings, {"crop_pct"}


def _levit(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    # The class enlarges by 256 / 224 in its code, whatever crop its settings name.
    if side := (settings.get("size") or {}).get("shortest_edge"):
        settings |= {"size": {"shortest_edge": int(256 / 224 * side)}}
    return settings, set()


def _efficientnet(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    if settings.get("rescale_offset") and settings.get("do_rescale"):
        settings["offset"] = -1.0
    # Its class divides by the standard deviation a second time for weights with an output layer.
    if settings.get("include_top"):
        settings["last_divisor"] = settings.get("image_std", 1.0)
    return settings, {"rescale_offset", "include_top", "offset", "last_divisor"}


def _mobilevit(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    if settings.get("do_flip_channel_order"):
        settings["channel_order"] = "bgr"
    return settings | {"do_normalize": False}, {"do_flip_channel_order", "channel_order"}


def _pp_lcnet(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    if (side := settings.get("resize_short")) is not None:
        settings |= {"size": {"shortest_edge": side}, "resize_rounding": "nearest"}
    return _normalised_as_bgr(settings), {"resize_short", "channel_order", "resize_rounding"}


def _normalised_as_bgr(settings: Settings) -> Settings:
    """Return those of classes that normalise before they put the channels in order."""
    values = {field: for_each_channel(settings[field])[::-1] for field in _PER_CHANNEL if field in settings}
    return settings | values | {"channel_order": "bgr"}


def _janus(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    if settings.get("do_pad") and (side := sides_of(settings.get("size"))):
        color = settings.get("background_color", (0, 0, 0))
        settings |= {"size": {"longest_edge": side[0]}, "pad_size": {"height": side[0], "width": side[1]}}
        fill_color = tuple(color) if isinstance(color, list | tuple) else (color,) * 3
        settings |= {"padding": "center", "fill_color": fill_color}
    return settings, {"min_size", "background_color", "padding", "fill_color"}


def _aria(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    side = settings["max_image_size"]
    settings |= {"do_resize": True, "do_pad": True, "size": {"longest_edge": side}, "fill_color": (0, 0, 0)}
    settings |= {"pad_size": {"height": side, "width": side}, "resize_rounding": "down"}
    return settings, {"max_image_size", "min_image_size", "fill_color", "resize_rounding"}


def _perceiver(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    if settings.get("do_center_crop"):
        # The crop is the share size / crop_size of the shorter side, and is made size.
        size, within = sides_of(settings.get("size")), sides_of(settings.get("crop_size"))
        if size is None or within is None or size[0] > within[0] or size[1] > within[1]:
            raise refusal(name, "crop_size", settings.get("crop_size"), "is not height and width of at least size")
        settings |= {"crop_first": True, "size": settings["crop_size"], "crop_size": settings["size"]}
    return settings, {"crop_first"}


def _donut(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    frame = sides_of(settings.get("size"))
    if frame is None:
        raise refusal(name, "size", settings.get("size"), "is not height and width")
    for field in ("do_thumbnail", "do_pad"):
        if not settings.get(field):
            raise refusal(name, field, False, "gives inputs of different shapes, and all have one here")
    height, width = frame
    # Made to cover the shorter side of the frame, and then to fit into it.
    settings |= {"first_resize": min(frame), "first_interpolation": INTERPOLATIONS.get(settings.get("resample", 2))}
    settings |= {"size": {"max_height": height, "max_width": width}, "pad_size": {"height": height, "width": width}}
    settings |= {"padding": "center", "fill_color": (0, 0, 0), "resize_rounding": "down"}
    return settings, {"do_thumbnail", "padding", "fill_color", "resize_rounding", *EXTRA_FIELDS}


def _nougat(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    settings, used = _donut(settings, name)
    if settings.get("do_crop_margin"):
        settings["trim_margin"] = True
    return settings | {"resample": 3}, {"do_crop_margin", *used}


def _slanext(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    if settings.get("do_pad") and (sides := sides_of(settings.get("size"))):
        settings |= {"size": {"longest_edge": max(sides)}}
    # The others name the words that it can write.
    return settings | {"antialias": False, "resample": 2}, {"antialias", "dict", "character", *_SLANEXT_TOKENS}


def _uvdoc(settings: Settings, name: str) -> tuple[Settings, set[str]]:
    fixed = {"antialias": False, "resample": 2, "alignment": "corners"}
    return _normalised_as_bgr(settings) | fixed, {"antialias", "alignment", "channel_order"}


RULES: dict[str, Rule] = {
    "ConvNextImageProcessor": _convnext,
    "PoolFormerImageProcessor": _poolformer,
    "LevitImageProcessor": _levit,
    "EfficientNetImageProcessor": _efficientnet,
    "MobileViTImageProcessor": _mobilevit,
    "PPLCNetImageProcessor": _pp_lcnet,
    "JanusImageProcessor": _janus,
    "DeepseekVLImageProcessor": _janus,
    "AriaImageProcessor": _aria,
    "PerceiverImageProcessor": _perceiver,
    "DonutImageProcessor": _donut,
    "NougatImageProcessor": _nougat,
    "PPFormulaNetImageProcessor": _nougat,
    "SLANeXtImageProcessor": _slanext,
    "UVDocImageProcessor": _uvdoc,
}

ALWAYS: dict[str, Settings] = {
    "PI0ImageProcessor": {"resize_rounding": "down"},
    "DepthProImageProcessor": {"antialias": False},
}
"""What some classes do whatever their settings say."""

NOT_OBEYED: dict[str, tuple[str, str]] = {
    "Owlv2ImageProcessor": ("do_pad", "makes a square and blurs it before it is resized"),
    "PPOCRV5ServerRecImageProcessor": ("max_image_width", "gives inputs of different widths"),
    "PPOCRV6SmallRecImageProcessor": ("max_image_width", "gives inputs of different widths"),
    "DeepseekVLHybridImageProcessor": ("high_res_size", "makes a second input of each image"),
    "BridgeTowerImageProcessor": ("size_divisor", "changes the ratio of the sides a little"),
}
"""Of classes, the field by which they do what no `PreprocessSpec` says, as long as it is on."""
