"""Layers that compute in float what their int8 form will compute, so that training feels the rounding.

Quantization-aware training after Jacob et al. 2018, arXiv 1712.05877: weights in a range for each output, inputs in one
range that follows what is seen; rounding is a step, so gradients go straight through it (Bengio et al. 2013, arXiv
1308.3432), and are zero beyond a range's ends.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelyard.errors import DataError
from modelyard.models.reshape import replace_

INPUT_LEVELS = 255  # of uint8
# Steps to either side of zero: 7 bits, as `modelyard.compress.StaticInt8` has them and for its reason.
WEIGHT_LEVELS = 64
# How fast a range follows the batches.
MOMENTUM = 0.01
TINY = 1e-12


class InputRange(nn.Module):
    """The range of a layer's inputs, which rounds them to 256 steps. It moves in training alone."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and inputs.numel():
            self._follow(inputs.detach())
        return torch.fake_quantize_per_tensor_affine(inputs.float(), *self.steps(), 0, INPUT_LEVELS)

    def steps(self) -> tuple[Tensor, Tensor]:
        """Size of a step, and the number (0 to 255, int32) that stands for zero, which always is among them."""
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        step = ((high - low) / INPUT_LEVELS).clamp(min=TINY)
        return step, (-low / step).round().clamp(0, INPUT_LEVELS).to(torch.int32)

    @torch.no_grad()
    def set_(self, inputs: Tensor) -> None:
        """The range of what training rows put in."""
        self.low.fill_(inputs.min())
        self.high.fill_(inputs.max())

    @torch.no_grad()
    def _follow(self, inputs: Tensor) -> None:
        self.low.lerp_(inputs.min().float(), MOMENTUM)
        self.high.lerp_(inputs.max().float(), MOMENTUM)


class SimulatedLinear(nn.Linear):
    """A linear layer with rounded weights and inputs; as it is without, where ``simulates`` is off."""

    simulates = True

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.range = InputRange()
        self.load_state_dict(layer.state_dict(), strict=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if not self.simulates:
            return super().forward(input)
        return functional.linear(self.range(input), rounded(self.weight), self.bias)


class SimulatedConv2d(nn.Conv2d):
    """The same for a convolution."""

    simulates = True

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            kernel_size=layer.kernel_size,  # ty: ignore[invalid-argument-type] (torch keeps what it was given as tuples)
            stride=layer.stride,  # ty: ignore[invalid-argument-type]
            padding=layer.padding,  # ty: ignore[invalid-argument-type]
            dilation=layer.dilation,  # ty: ignore[invalid-argument-type]
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
        )
        self.range = InputRange()
        self.load_state_dict(layer.state_dict(), strict=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if not self.simulates:
            return super().forward(input)
        return self._conv_forward(self.range(input), rounded(self.weight), self.bias)


Simulated = SimulatedLinear | SimulatedConv2d


def simulate_(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Have the named layers compute as their int8 form will, in place, with their weights and ranges still to be set.

    Raises:
        DataError: there is no linear or convolutional layer of that name.
    """
    for name in names:
        layer = dict(network.named_modules()).get(name)
        if isinstance(layer, nn.Linear):
            replace_(network, name, SimulatedLinear(layer).train(layer.training))
        elif isinstance(layer, nn.Conv2d):
            replace_(network, name, SimulatedConv2d(layer).train(layer.training))
        else:
            raise DataError(f"{type(network).__name__} has no layer {name!r} to simulate; did its code change?")
    return network


def simulated(network: nn.Module) -> dict[str, Simulated]:
    """Layers that compute as their int8 form will, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Simulated)}


def weight_steps(weight: Tensor) -> Tensor:
    """Size of a step (out,) of each output's weights (out, ...), symmetric around zero."""
    return (weight.detach().flatten(1).abs().amax(dim=1).float() / WEIGHT_LEVELS).clamp(min=TINY)


def rounded(weight: Tensor) -> Tensor:
    """Weights (out, ...) as int8 holds them."""
    steps = weight_steps(weight)
    zeros = torch.zeros(len(steps), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight.float(), steps, zeros, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS)
