"""Preprocessing from the JSON files that published models carry: Convoy's own fields, Hugging Face's, timm's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from convoy.contract.errors import DataError, UsageError
from convoy.export.adopt.preprocess import Color, Interpolation, Layout, Preprocess, Resize, choice

_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_MAX_BYTES = 1 << 20
_OWN_FIELDS = ("scale", "range", "mean", "std", "color", "size", "resize", "interpolation", "layout")


def read_preprocess(path: Path) -> Preprocess:
    """Read a spec from a JSON file.

    Three forms are known: an object with the fields of the command line (``mean``, ``std``, ``range`` or ``scale``, ``color``,
    ``size`` as a number or ``[height, width]``, ``resize``, ``interpolation``, ``layout``); Hugging Face's
    ``preprocessor_config.json``; timm's ``config.json`` (``pretrained_cfg``).

    Raises:
        DataError: It cannot be read, is no JSON object, or asks for what a graph of scale, mean and std cannot do.
        UsageError: Its values make no sense.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: expected a JSON file of at most {_MAX_BYTES} bytes, found {path.stat().st_size}.")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON object, found text that is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(fields).__name__}.")
    try:
        if isinstance(fields.get("pretrained_cfg"), dict):
            return _from_timm(fields["pretrained_cfg"])
        if "input_size" in fields:
            return _from_timm(fields)
        if any(
            key in fields for key in ("image_mean", "do_rescale", "do_normalize", "image_processor_type", "feature_extractor_type")
        ):
            return _from_hugging_face(fields)
        return _from_own(fields)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path}: a field of the preprocessing has another form than expected: {error!r}.") from error
    except (DataError, UsageError) as error:
        raise type(error)(f"{path}: {error}") from error


def _from_own(fields: Mapping[str, Any]) -> Preprocess:
    if unknown := sorted(fields.keys() - set(_OWN_FIELDS)):
        raise UsageError(f"expected the fields {', '.join(_OWN_FIELDS)}, found {', '.join(map(repr, unknown))}.")
    if {"scale", "range"} <= fields.keys():
        raise UsageError("expected scale or range, found both: range=255 is scale=1.")
    values: dict[str, Any] = {key: _numbers(fields[key]) for key in ("mean", "std") if key in fields}
    if "scale" in fields or "range" in fields:
        values["scale"] = float(fields["scale"]) if "scale" in fields else float(fields["range"]) / 255
    if "size" in fields:
        values["height_px"], values["width_px"] = _pair(fields["size"])
    for key, allowed in (("color", Color), ("resize", Resize), ("interpolation", Interpolation), ("layout", Layout)):
        if key in fields:
            values[key] = choice(str(fields[key]).lower(), get_args(allowed), key)
    return Preprocess(**values)


def _from_hugging_face(fields: Mapping[str, Any]) -> Preprocess:
    if fields.get("rescale_offset"):
        raise DataError("asks for rescale_offset, which differs from network to network: give mean, std and range yourself.")
    remarks: list[str] = []
    rescale = bool(fields.get("do_rescale", True))
    values: dict[str, Any] = {"scale": float(fields.get("rescale_factor", 1 / 255)) if rescale else 1.0}
    if fields.get("do_normalize", True) and "image_mean" in fields:
        values["mean"], values["std"] = _numbers(fields["image_mean"]), _numbers(fields["image_std"])
    if fields.get("do_flip_channel_order"):
        values["color"] = "bgr"
    crops = bool(fields.get("do_center_crop", False)) and "crop_size" in fields
    size = fields["crop_size"] if crops else fields.get("size")
    shortest = _shortest_edge(fields.get("size"))
    if isinstance(size, Mapping) and "shortest_edge" in size:
        values["height_px"] = values["width_px"] = int(size["shortest_edge"])
    elif size is not None:
        values["height_px"], values["width_px"] = _pair(size)
    cuts = crops or shortest is not None
    values["resize"] = "crop" if cuts else "stretch"
    if "height_px" in values and crops and shortest not in (None, values["height_px"]):
        remarks.append(_crop_remark(f"resizes the shorter side to {shortest} and cuts {values['height_px']}"))
    if "crop_pct" in fields and float(fields["crop_pct"]) < 1 and not crops:
        remarks.append(_crop_remark(f"keeps the inner {float(fields['crop_pct']):.1%} (crop_pct)"))
    if "resample" in fields:
        values["interpolation"] = _filter(fields["resample"])
    return Preprocess(**values, remarks=tuple(remarks))


def _from_timm(fields: Mapping[str, Any]) -> Preprocess:
    channels, height, width = (int(value) for value in fields["input_size"])
    values: dict[str, Any] = {"height_px": height, "width_px": width, "color": "grey" if channels == 1 else "rgb"}
    values.update({key: _numbers(fields[key]) for key in ("mean", "std") if key in fields})
    if "interpolation" in fields:
        values["interpolation"] = choice(str(fields["interpolation"]).lower(), get_args(Interpolation), "interpolation")
    values["resize"] = (
        "stretch" if fields.get("crop_mode") == "squash" else "fit" if fields.get("crop_mode") == "border" else "crop"
    )
    share = float(fields.get("crop_pct", 1))
    remarks = (_crop_remark(f"keeps the inner {share:.1%} (crop_pct)"),) if share < 1 else ()
    return Preprocess(**values, remarks=remarks)


def _crop_remark(asked: str) -> str:
    return (
        f"the preprocessing file {asked}; clients of Convoy keep the whole shorter side, so published accuracy can differ a little"
    )


def _shortest_edge(size: object) -> int | None:
    if isinstance(size, Mapping):
        return int(size["shortest_edge"]) if "shortest_edge" in size else None
    return int(size) if isinstance(size, int) else None


def _filter(value: object) -> str:
    if value not in _PIL_FILTERS:
        raise UsageError(f"resample: expected PIL's number of a filter ({_PIL_FILTERS}), found {value!r}.")
    return _PIL_FILTERS[int(str(value))]


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(number) for number in value) if isinstance(value, list) else (float(value),)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (
        (size["height"], size["width"]) if isinstance(size, Mapping) else size if isinstance(size, list) else (size, size)
    )
    if not (1 <= int(height) <= 16_384 and 1 <= int(width) <= 16_384):
        raise UsageError(f"size: expected pixels from 1 to 16384, found {size!r}.")
    return int(height), int(width)
