"""Fresh weights as the papers draw them, where torch's own rule is another."""

from __future__ import annotations

import torch
from torch import nn

from convoy.training.networks.connection_table import TableConv2d


@torch.no_grad()
def draw_as_lecun(module: nn.Module) -> None:
    """Weights and biases even from +-2.4 / F, where F is how many inputs a unit has; subsampling stays the mean that it starts as.

    Source: LeCun, Bottou, Bengio, Haffner 1998, appendix A.
    """
    for layer in module.modules():
        if isinstance(layer, TableConv2d):
            layer.draw(lambda n_inputs: 2.4 / n_inputs)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            limit = 2.4 / layer.weight[0].numel()
            layer.weight.uniform_(-limit, limit)
            if layer.bias is not None:
                layer.bias.uniform_(-limit, limit)


@torch.no_grad()
def draw_as_he(module: nn.Module) -> None:
    """Weights normal with variance 2 / F, where F is how many inputs a unit has; biases 0.

    Source: He, Zhang, Ren, Sun 2015, Delving Deep into Rectifiers, section 2.2.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                layer.bias.zero_()
