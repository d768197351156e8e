"""What the lecture says of each network, and what its modules say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from convoy.training.anatomy.anatomy import Anatomy, Layer


@dataclass(frozen=True)
class Statement:
    """One number of the lecture.

    Attributes:
        subject: What it counts.
        formula: The lecture's formula, as it writes it or as its rule gives it; None where it gives the number alone.
        says: Its number, as it writes it.
        low: The exact number agrees with the lecture's where it lies between ``low`` and ``high``, both included.
        high: See ``low``.
        count: Counts it on the built network; None where the network has no such part.
        exact: The exact formula; None where there is none, or the network has no such part.
        remark: Why the two differ; "" where they do not.
    """

    subject: str
    formula: str | None
    says: str
    low: float
    high: float
    count: Callable[[Anatomy], float | None]
    exact: Callable[[Anatomy], str | None] = lambda _: None
    remark: str = ""


@dataclass(frozen=True)
class LectureNetwork:
    """What the lecture says of one network.

    Attributes:
        image_dims: Channels, height and width for which its numbers hold.
        n_classes: Classes for which they hold.
        statements: They.
    """

    image_dims: tuple[int, int, int]
    n_classes: int
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Comparison:
    """One number of the lecture beside the exact one.

    Attributes:
        subject: What is counted.
        lecture_formula: The lecture's formula; None where it gives the number alone.
        lecture: The lecture's number, as it writes it.
        exact_formula: The exact formula; None where the number is a sum over many layers.
        exact: The exact number.
        agrees: Whether they are the same, as exactly as the lecture gives its own.
        remark: Why they differ; "" where they do not.
    """

    subject: str
    lecture_formula: str | None
    lecture: str
    exact_formula: str | None
    exact: float
    agrees: bool
    remark: str


def compare(network: str, anatomy: Anatomy, n_classes: int) -> tuple[Comparison, ...] | None:
    """The lecture's numbers beside those of the built network.

    Args:
        network: Its name.
        anatomy: It.
        n_classes: How many classes it was built for.

    Returns:
        One a statement; of a part that the network as it was built does not have, none. None where the lecture gives no numbers,
        or gives them for other images or another number of classes (``LECTURE[network]`` says which).
    """
    facts = LECTURE.get(network)
    if facts is None or facts.image_dims != anatomy.image_dims or facts.n_classes != n_classes:
        return None
    comparisons = []
    for statement in facts.statements:
        exact = statement.count(anatomy)
        if exact is None:
            continue
        agrees = statement.low <= exact <= statement.high
        comparisons.append(
            Comparison(
                subject=statement.subject,
                lecture_formula=statement.formula,
                lecture=statement.says,
                exact_formula=statement.exact(anatomy),
                exact=exact,
                agrees=agrees,
                remark="" if agrees else statement.remark,
            )
        )
    return tuple(comparisons)


def _convolution(number: int, name: str, formula: str, n: int, remark: str = "") -> Statement:
    return _weights("convolution", number, name, formula, n, remark)


def _fully_connected(number: int, name: str, formula: str, n: int, remark: str = "") -> Statement:
    return _weights("fully connected", number, name, formula, n, remark)


def _weights(role: str, number: int, name: str, formula: str, n: int, remark: str) -> Statement:
    def layer(anatomy: Anatomy) -> Layer | None:
        layers = anatomy.of_role(role)
        return layers[number] if number < len(layers) else None

    def counted(anatomy: Anatomy) -> float | None:
        found = layer(anatomy)
        return None if found is None else found.parameters

    def formula_of(anatomy: Anatomy) -> str | None:
        found = layer(anatomy)
        return None if found is None or found.formula is None else found.formula.partition(" = ")[0]

    return Statement(f"parameters of {name}", formula, f"{n:,}", n, n, counted, formula_of, remark)


def _total(says: str, low: float, high: float, remark: str = "") -> Statement:
    return Statement("parameters", None, says, low, high, lambda anatomy: anatomy.parameters, remark=remark)


def _field(says: str, size_px: int) -> Statement:
    def size(anatomy: Anatomy) -> float | None:
        field = None if anatomy.last_map is None else anatomy.layers[anatomy.last_map].field
        return None if field is None else max(field.size_px)

    return Statement("receptive field behind the last pool, px", None, says, size_px, size_px, size)


def _share(cost: Callable[[Layer], int], subject: str, says: str, low: float, high: float, remark: str) -> Statement:
    def share(anatomy: Anatomy) -> float:
        return sum(map(cost, anatomy.of_role("convolution"))) / max(1, sum(map(cost, anatomy.layers)))

    return Statement(subject, None, says, low, high, share, remark=remark)


def _weight_layers(says: str, n: int) -> Statement:
    def layers(anatomy: Anatomy) -> float:
        # a convolution on a shortcut is none of the layers that the papers count
        named = [layer for layer in anatomy.layers if layer.role is not None]
        return sum(not _is_shortcut(layer) for layer in named)

    return Statement("layers with weights", None, says, n, n, layers)


def _is_shortcut(layer: Layer) -> bool:
    return "downsample" in layer.name or "shortcut" in layer.name


_CONV_6: Final = _convolution(0, "Conv-6 (5x5)", "(5x5 + 1) * 6", 156)
_CONV_16: Final = _convolution(
    1,
    "Conv-16 (5x5)",
    "(5x5 + 1) * 6",
    156,
    "the lecture counts 6 filters of 5x5 on one channel: there are 16, each on 6 channels",
)
_DIGIT: Final = (1, 28, 28)
_PHOTO: Final = (3, 224, 224)

LECTURE: Final[Mapping[str, LectureNetwork]] = MappingProxyType(
    {
        "linear": LectureNetwork(
            _DIGIT,
            10,
            (_fully_connected(0, "FC-10", "10 (784 + 1)", 7_850), _total("7,850", 7_850, 7_850)),
        ),
        "lenet300-1": LectureNetwork(
            _DIGIT,
            10,
            (
                _fully_connected(0, "FC-300", "300 (784 + 1)", 235_500),
                _fully_connected(1, "FC-10", "10 (300 + 1)", 3_010),
            ),
        ),
        "lenet300": LectureNetwork(
            _DIGIT,
            10,
            (
                _fully_connected(0, "FC-300", "300 (784 + 1)", 235_500),
                _fully_connected(1, "FC-100", "100 (300 + 1)", 30_100),
                _fully_connected(2, "FC-10", "10 (100 + 1)", 1_010),
                _total("about 260k", 255_000, 265_000, "266,610 with the biases and 266,200 without are both 267k or 266k"),
            ),
        ),
        "lenet300-conv": LectureNetwork(
            _DIGIT,
            10,
            (
                _CONV_6,
                _fully_connected(0, "FC-100", "100 (6*28*28 + 1)", 470_500),
                _fully_connected(1, "FC-10", "10 (100 + 1)", 1_010),
                _total("400k+", 395_000, 405_000, "6 maps of 28x28 alone have 470,400 weights to 100 units: 472k in all"),
            ),
        ),
        "lenet300-conv-pool": LectureNetwork(
            _DIGIT,
            10,
            (
                _CONV_6,
                _fully_connected(0, "FC-100", "100 (6*14*14 + 1)", 117_700),
                _fully_connected(1, "FC-10", "10 (100 + 1)", 1_010),
                _total("about 118k", 117_500, 118_500, "118,866 with the biases and 118,750 without both round to 119k"),
            ),
        ),
        "lenet300-conv-pool2": LectureNetwork(
            _DIGIT,
            10,
            (
                _CONV_6,
                _CONV_16,
                _fully_connected(0, "FC-100", "100 (16*7*7 + 1)", 78_500),
                _fully_connected(1, "FC-10", "10 (100 + 1)", 1_010),
                _total("about 82k", 81_500, 82_500),  # the right sum: with its own Conv-16 it would be 80k
                _field("16x16", 16),
            ),
        ),
        "lenet5": LectureNetwork(
            _DIGIT,
            10,
            (_CONV_6, _total("about 60k", 55_000, 65_000)),
        ),
        "lenet5-1998": LectureNetwork(_DIGIT, 10, (_CONV_6, _total("about 60k", 55_000, 65_000))),
        "alexnet": LectureNetwork(
            _PHOTO,
            1000,
            (
                _weight_layers("8", 8),
                _total("62.3M", 62_250_000, 62_400_000),
                _share(
                    lambda layer: layer.parameters,
                    "share of the parameters in convolutional layers",
                    "6 %",
                    0.055,
                    0.065,
                    "counted on this network",
                ),
                _share(
                    lambda layer: layer.macs,
                    "share of the time in convolutional layers (ours: of the multiply-accumulates)",
                    "95 %",
                    0.94,
                    0.96,
                    "time is not arithmetic alone",
                ),
            ),
        ),
        **{
            name: LectureNetwork(_PHOTO, 1000, (_weight_layers(str(n), n),))
            for name, n in {
                "vgg-a": 11,
                "vgg-a-lrn": 11,
                "vgg-b": 13,
                "vgg-c": 16,
                "vgg-d": 16,
                "vgg-e": 19,
                "resnet18": 18,
                "resnet34": 34,
                "resnet50": 50,
                "resnet101": 101,
                "resnet152": 152,
                "plain18": 18,
                "plain34": 34,
            }.items()
        },
    }
)
"""The lecture's numbers, by the network's name."""
