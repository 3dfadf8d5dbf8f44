"""A convolutional network for rows of pixels."""

from __future__ import annotations

import torch
from torch import nn

from modelyard.models.config import CnnConfig
from modelyard.models.mlp import ACTIVATIONS


class Cnn(nn.Module):
    """(n, height * width * image_channels) -> (n, output_width).

    A row holds the pixels line by line, the channels of a pixel side by side, as preprocessing writes images. For each
    of ``channels`` a convolution, an activation and a pooling that halves height and width; then a hidden layer and the
    outputs.
    """

    def __init__(self, config: CnnConfig, output_width: int) -> None:
        super().__init__()
        self._shape = (*config.image, config.image_channels)
        activation = ACTIVATIONS[config.activation]
        blocks: list[nn.Module] = []
        width = config.image_channels
        for channels in config.channels:
            convolution = nn.Conv2d(width, channels, config.kernel_size, padding="same")
            blocks += [convolution, activation(), nn.MaxPool2d(2)]
            width = channels
        self.convolutions = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * config.num_positions, config.hidden),
            activation(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, output_width),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        images = features.unflatten(1, self._shape).permute(0, 3, 1, 2)
        return self.head(self.convolutions(images))
