"""A multilayer perceptron."""

from __future__ import annotations

import torch
from torch import nn

from modelyard.models.config import MlpConfig

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU, "identity": nn.Identity}


class Mlp(nn.Module):
    """(n, input_width) -> (n, output_width): linear, activation, dropout for each hidden size, then linear."""

    def __init__(self, config: MlpConfig, input_width: int, output_width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_width
        for hidden in config.hidden_sizes:
            layers += [nn.Linear(width, hidden), ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, output_width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)
