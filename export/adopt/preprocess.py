"""What a foreign network expects of its pixels: the spec that a person gives, parsed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

from convoy.contract.errors import UsageError
from convoy.contract.manifest import Preprocessing

Color: TypeAlias = Literal["rgb", "bgr", "grey"]
Resize: TypeAlias = Literal["stretch", "fit", "crop"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Layout: TypeAlias = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Preprocess:
    """What a network expects: each channel is ``(scale * pixel - mean) / std``, with ``pixel`` from 0 to 255.

    What the common published networks need:

    =============================  =======================================================================================
    ``imagenet``                   torchvision, timm, most of Hugging Face: RGB, 0..1, mean 0.485,0.456,0.406, std 0.229,0.224,0.225
    ``caffe``                      Caffe's and Keras's VGG and ResNet: BGR, 0..255, mean 103.939,116.779,123.68, std 1
    ``-1..1``                      TensorFlow's MobileNet and Inception, Hugging Face's ViT: ``pixel / 127.5 - 1``
    ``0..1``                       ``pixel / 255``
    ``raw``                        0..255 as they are: networks that scale pixels themselves (Keras's EfficientNet), uint8 networks
    ``mnist``                      grey, 0..1, mean 0.1307, std 0.3081
    =============================  =======================================================================================

    Attributes:
        scale: The factor before mean and std; 1/255 takes pixels to 0..1.
        mean: One value, or one a channel in the order in which the network takes them (``bgr``: blue first), after scaling.
        std: As ``mean``.
        color: The order of the channels; ``grey`` for networks that were trained on grey images, also where they take three equal
            channels. None: grey where the network takes one channel, else rgb.
        height_px: The image's height, where the network does not fix it.
        width_px: The image's width, where the network does not fix it.
        resize: How an image of another shape is brought to size; see ``ImageSpec``.
        interpolation: The resampling filter.
        layout: ``nchw`` or ``nhwc``, where the network does not show it.
        remarks: What the spec asked for and Convoy does another way.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: Color | None = None
    height_px: int | None = None
    width_px: int | None = None
    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"
    layout: Layout | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.scale, *self.mean, *self.std)
        if not all(math.isfinite(number) for number in numbers) or self.scale <= 0 or min(self.std, default=0) <= 0:
            raise UsageError(
                f"preprocessing: expected finite numbers, scale and std above 0, found scale {self.scale}, mean {self.mean}, "
                f"std {self.std}."
            )
        lengths = {len(self.mean), len(self.std)} - {1}
        if len(lengths) > 1 or not lengths <= {3} or (lengths and self.color == "grey"):
            raise UsageError(
                f"preprocessing: expected one mean and one std, or three of each for {self.color or 'rgb'} (one for grey), "
                f"found {len(self.mean)} and {len(self.std)}."
            )
        beyond = [value for value in self.mean if abs(value) > 255 * self.scale * (1 + 1e-6)]
        if beyond:
            raise UsageError(
                f"preprocessing: mean {beyond[0]:g} lies outside the pixels, which run from 0 to {255 * self.scale:g} after "
                "scaling: means for pixels from 0 to 255 need range=255."
            )

    def per_channel(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std, one value for each of ``channels``.

        Raises:
            UsageError: The spec is for another number of channels.
        """
        wide = max(len(self.mean), len(self.std))
        if wide not in (1, channels):
            raise UsageError(
                f"preprocessing: expected one mean and std, or one for each of the network's {channels} channels, found {wide}."
            )
        mean = self.mean * (channels if len(self.mean) == 1 else 1)
        return mean, self.std * (channels if len(self.std) == 1 else 1)

    def facts(self, channels: int) -> Preprocessing | None:
        """What the manifest says of it; None where the manifest has no word for it (BGR).

        Args:
            channels: Of the network's input.
        """
        if self.color == "bgr":
            return None
        mean, std = self.per_channel(channels)
        return Preprocessing(polarity="as-is", scale=self.scale, mean=mean, std=std)


PRESETS: Final[Mapping[str, Preprocess]] = MappingProxyType(
    {
        "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        "caffe": Preprocess(scale=1.0, mean=(103.939, 116.779, 123.68), color="bgr"),
        "-1..1": Preprocess(mean=(0.5,), std=(0.5,)),
        "0..1": Preprocess(),
        "raw": Preprocess(scale=1.0),
        "mnist": Preprocess(mean=(0.1307,), std=(0.3081,), color="grey"),
    }
)
"""By name, what common published networks need; ``Preprocess`` says which networks."""

HELP: Final = (
    "expected a preset (imagenet: RGB, 0..1, mean 0.485,0.456,0.406, std 0.229,0.224,0.225; caffe: BGR, 0..255, mean "
    "103.939,116.779,123.68; -1..1; 0..1; raw: 0..255 as they are; mnist: grey, mean 0.1307, std 0.3081), or a JSON file (Hugging "
    "Face's preprocessor_config.json, timm's config.json), and after it, or alone, any of mean=A,B,C std=A,B,C range=255 (pixels "
    "run from 0 to so much before the mean is taken; default 1) color=rgb|bgr|grey size=224 or size=HEIGHTxWIDTH "
    "resize=crop|fit|stretch interpolation=bilinear|bicubic|nearest|lanczos layout=nchw|nhwc"
)
"""What a wrong spec is answered with."""


def parse_preprocess(spec: str) -> Preprocess:
    """Parse a spec: a preset or a JSON file, then ``key=value`` words that override it; or such words alone.

    ``imagenet``; ``imagenet size=299``; ``mean=123.68,116.78,103.94 std=58.4,57.1,57.4 range=255``; ``preprocessor_config.json``.
    The keys are ``mean``, ``std``, ``range``, ``color``, ``size``, ``resize``, ``interpolation`` and ``layout``; ``Preprocess``
    says what they mean and what each preset is for.

    Args:
        spec: What the person wrote.

    Raises:
        UsageError: It is no such spec; the message lists presets and keys.
        DataError: It names a file that cannot be read.
    """
    words = spec.split()
    if not words:
        raise UsageError(f"preprocessing: {HELP}; found nothing.")
    base = Preprocess()
    if words[0] in PRESETS:
        base = PRESETS[words.pop(0)]
    elif "=" not in words[0] or words[0].endswith(".json"):
        base = _from_file(words.pop(0))
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        fields = _fields(key, value, word) if equals else None
        if fields is None:
            raise UsageError(f"preprocessing: {HELP}; found {word!r}.")
        if repeated := sorted(fields.keys() & changes.keys()):
            raise UsageError(f"preprocessing: expected {repeated[0]} once, found it again in {word!r}.")
        changes.update(fields)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # each parser below makes its field's type


def _from_file(word: str) -> Preprocess:
    from convoy.export.adopt.preprocess_files import read_preprocess

    path = Path(word)
    if path.suffix.lower() != ".json" and not path.is_file():
        raise UsageError(f"preprocessing: {HELP}; found {word!r}.")
    return read_preprocess(path)


def _fields(key: str, value: str, word: str) -> dict[str, object] | None:
    """The fields that one word sets; None where there is no such key."""
    if key in ("mean", "std"):
        return {key: tuple(_number(part, word) for part in value.split(","))}
    if key == "range":
        return {"scale": _number(value, word) / 255}
    if key == "size":
        return dict(zip(("height_px", "width_px"), _size(value, word), strict=True))
    choices = {
        "color": ("color", get_args(Color)),
        "colour": ("color", get_args(Color)),
        "resize": ("resize", get_args(Resize)),
        "interpolation": ("interpolation", get_args(Interpolation)),
        "layout": ("layout", get_args(Layout)),
    }
    if key not in choices:
        return None
    field, allowed = choices[key]
    return {field: choice(value.lower(), allowed, word)}


def choice(value: str, allowed: tuple[str, ...], where: str) -> str:
    """``value`` where it is one of ``allowed``.

    Raises:
        UsageError: It is another.
    """
    value = "grey" if value == "gray" else value
    if value not in allowed:
        raise UsageError(f"preprocessing: expected one of {', '.join(allowed)}, found {value!r} in {where!r}.")
    return value


def _number(text: str, word: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"preprocessing: expected numbers separated by commas alone, found {word!r}.") from None


def _size(text: str, word: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None or (size := (int(match[1]), int(match[2] or match[1]))) < (1, 1) or max(size) > 16_384 or min(size) < 1:
        raise UsageError(f"preprocessing: expected size=224 or size=HEIGHTxWIDTH in pixels, 16384 at most, found {word!r}.")
    return size
