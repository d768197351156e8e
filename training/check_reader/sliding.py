"""Networks that are swept over a field of any width: a column of scores every few pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from convoy.contract.errors import UsageError
from convoy.training.check_reader.standardising import columns_within
from convoy.training.networks.lenet5 import LeNet5

STRIDE: Final = 4
"""Pixels from one frame to the next, of every network here."""


class SlidingNetwork(nn.Module, ABC):
    """From a standardised field to scores, a frame every ``STRIDE`` pixels; what stands right of the field changes none of them.

    Attributes:
        height_px: The height of the fields that it takes.
    """

    height_px: int

    @abstractmethod
    def forward(self, field: Tensor, width: Tensor) -> Tensor:
        """Scores of every frame.

        Args:
            field: float (B, 1, H, W), 0 right of each field.
            width: int64 (B,), columns of each field.

        Returns:
            float (B, T, classes), logits; T = ceil(W / STRIDE), and those of a field are the first ceil(width / STRIDE).
        """


class SlidingLeNet5(SlidingNetwork):
    """LeNet5 as a Space Displacement Neural Network: its fully connected layers are convolutions, so that it may be swept.

    On a single window of 32x32 pixels ``window`` computes what the classifier computes; on a field it computes the same for every
    window, four pixels apart, each layer once for all of them. 14 columns of paper before the field let its first window stand
    around its first pixels.

    Source: LeCun, Bottou, Bengio, Haffner 1998, section VII (SDNN) and II.B (LeNet5).
    """

    height_px = 32
    _BEFORE, _BEHIND = 14, 17  # (W + 31 - 32) // 4 + 1 windows are ceil(W / 4)

    def __init__(
        self,
        n_classes: int,
        *,
        channels: tuple[int, int, int, int] = (6, 16, 120, 84),
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        c1, c3, c5, f6 = channels

        def after(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

        self.c1, self.after_c1 = nn.Conv2d(1, c1, 5), after(c1)
        self.c3, self.after_c3 = nn.Conv2d(c1, c3, 5), after(c3)
        self.c5, self.after_c5 = nn.Conv2d(c3, c5, 5), after(c5)
        self.f6, self.after_f6 = nn.Conv2d(c5, f6, 1), after(f6)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Conv2d(f6, n_classes, 1)

    def forward(self, field: Tensor, width: Tensor) -> Tensor:  # noqa: ARG002  its convolutions pad nothing: the 0 are enough
        """See ``SlidingNetwork.forward``."""
        padded = functional.pad(field, (self._BEFORE, self._BEHIND))
        return self.window(padded).squeeze(2).transpose(1, 2)

    def window(self, pixels: Tensor) -> Tensor:
        """Logits of every window, float (B, classes, 1, (W - 32) // 4 + 1); ``pixels`` are float (B, 1, 32, W), W at least 32."""
        x = functional.max_pool2d(functional.relu(self.after_c1(self.c1(pixels))), 2)  # (B, 6, 14, .)
        x = functional.max_pool2d(functional.relu(self.after_c3(self.c3(x))), 2)  # (B, 16, 5, .)
        x = functional.relu(self.after_c5(self.c5(x)))  # (B, 120, 1, .)
        x = functional.relu(self.after_f6(self.f6(x)))  # (B, 84, 1, .)
        logits: Tensor = self.output(self.dropout(x))
        return logits

    @classmethod
    def from_classifier(cls, classifier: LeNet5, classes: list[int | None]) -> SlidingLeNet5:
        """The network of a classifier's layers.

        Args:
            classifier: LeNet5 with ReLU and max pooling, for grey images of 28x28 or 32x32.
            classes: For each class of the new network the classifier's class with its output's weights; None: random ones.

        Raises:
            UsageError: The classifier takes colour, or has another form.
        """
        if classifier.c1.weight.shape != (6, 1, 5, 5) or classifier.c5.weight.shape != (120, 400):
            raise UsageError("expected a LeNet5 for grey digits of 28x28 or 32x32 pixels, found another network.")
        network = cls(len(classes))
        with torch.no_grad():
            for name in ("c1", "c3", "c5", "f6"):
                for kind, ours in getattr(network, name).named_parameters():
                    ours.copy_(getattr(getattr(classifier, name), kind).view_as(ours))
            for kind, ours in network.output.named_parameters():
                theirs = getattr(classifier.output, kind)
                for place, source in enumerate(classes):
                    if source is not None:
                        ours[place] = theirs[source].view_as(ours[place])
        return network


class _Block(nn.Module):
    """Two convolutions with batch norm, and a way around them (He and others 2015); masked, so that padding stays 0."""

    def __init__(self, n_in: int, n_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.around: nn.Module = nn.Identity()
        if n_in != n_out or stride != (1, 1):
            self.around = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x))) * inside
        y = self.bn2(self.conv2(y)) + self.around(x)
        return functional.relu(y) * inside


class ResidualSliding(SlidingNetwork):
    """A small residual network, swept: convolutions in two dimensions, then along the line for context.

    After each layer what lies right of the field is set to 0, which is what the next one would pad with: the width of the batch
    changes nothing.

    Args:
        n_classes: The blank and the characters.
        height_px: Of the fields; a multiple of 8.
        channels: Of the three stages, whose maps have 1/2, 1/4 and 1/8 of the height, and of the frames.
        blocks: Residual blocks of each stage; the first may have none.
        dropout: Share of the last features left out in training.

    Source: He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, section 3.3, at a small scale.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        height_px: int = 48,
        channels: tuple[int, int, int, int] = (24, 48, 96, 192),
        blocks: tuple[int, int, int] = (0, 2, 1),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if height_px % 8:
            raise UsageError(f"height_px: expected a multiple of 8, found {height_px}.")
        self.height_px = height_px
        c1, c2, c3, c4 = channels
        self.stem = nn.Conv2d(1, c1, 5, (2, 2), 2, bias=False)
        self.stem_bn = nn.BatchNorm2d(c1)
        self.stage1 = _stage(c1, c1, blocks[0], (1, 1))
        self.stage2 = _stage(c1, c2, blocks[1], (2, 2))
        self.stage3 = _stage(c2, c3, blocks[2], (2, 1))
        self.column = nn.Conv2d(c3, c4, (height_px // 8, 1), bias=False)  # a column of features becomes a frame
        self.column_bn = nn.BatchNorm2d(c4)
        self.context = nn.ModuleList(nn.Conv1d(c4, c4, 3, padding=1, bias=False) for _ in range(2))
        self.context_bn = nn.ModuleList(nn.BatchNorm1d(c4) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Conv1d(c4, n_classes, 1)

    def forward(self, field: Tensor, width: Tensor) -> Tensor:
        """See ``SlidingNetwork.forward``."""
        x = self.stem_bn(self.stem(field)).relu()  # (B, c1, H / 2, W / 2)
        halves, quarters = (_inside(width, -(-field.shape[3] // stride), stride).to(x.dtype) for stride in (2, STRIDE))
        x = x * halves
        for block in self.stage1:
            x = block(x, halves)
        for block in (*self.stage2, *self.stage3):
            x = block(x, quarters)  # (B, c2, H / 4, W / 4), then (B, c3, H / 8, W / 4)
        quarters = quarters.squeeze(1)
        x = self.column_bn(self.column(x)).relu().squeeze(2) * quarters  # (B, c4, W / 4)
        for convolution, norm in zip(self.context, self.context_bn, strict=True):
            x = (x + norm(convolution(x)).relu()) * quarters
        logits: Tensor = self.output(self.dropout(x)).transpose(1, 2)
        return logits


def _stage(n_in: int, n_out: int, n_blocks: int, stride: tuple[int, int]) -> nn.ModuleList:
    return nn.ModuleList(_Block(n_out if i else n_in, n_out, (1, 1) if i else stride) for i in range(n_blocks))


def _inside(width: Tensor, n_columns: int, stride: int) -> Tensor:
    """Which columns of a map lie within each field: bool (B, 1, 1, columns)."""
    return columns_within(width, n_columns, stride)[:, None, None]


class Filled(nn.Module):
    """A network on fields that are as wide as their image: float (B, 1, H, W) in, ``SlidingNetwork.forward``'s logits out.

    Its layers are the network's, under the same names: what looks at a network and gives it an image alone can take it apart.
    """

    def __init__(self, network: SlidingNetwork) -> None:
        super().__init__()
        self._network = (network,)  # within a tuple it is no layer itself
        for name, layer in network.named_children():
            self.add_module(name, layer)

    def forward(self, field: Tensor) -> Tensor:
        """See ``SlidingNetwork.forward``."""
        logits: Tensor = self._network[0](field, torch.full(field.shape[:1], field.shape[3], device=field.device))
        return logits
