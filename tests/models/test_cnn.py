"""Convolutions over rows of pixels."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from modelyard.models import CnnConfig, ModelConfig
from modelyard.models.build import build_model

COLOURED = CnnConfig(kind="cnn", image=(6, 9), image_channels=3, channels=(4, 5), hidden=7)


def test_a_row_is_an_image():
    """Its numbers are the pixels line by line, the channels of a pixel side by side: moving one moves what looks there."""
    network = build_model(COLOURED, 6 * 9 * 3, 2).eval()
    seen = []
    network.get_submodule("convolutions.0").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    row = torch.zeros(1, 6 * 9 * 3)
    row[0, (4 * 9 + 7) * 3 + 2] = 1  # line 4, column 7, blue
    assert network(row).shape == (1, 2)
    assert seen[0].shape == (1, 3, 6, 9)
    assert seen[0].nonzero().tolist() == [[0, 2, 4, 7]]


def test_its_size_follows_from_its_config():
    """Two poolings leave 1 x 2 of 6 x 9 pixels."""
    network = build_model(COLOURED, 6 * 9 * 3, 2)
    weights = (3 * 9 + 1) * 4 + (4 * 9 + 1) * 5 + (5 * 2 + 1) * 7 + (7 + 1) * 2
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    assert COLOURED.input_width == 162


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"image": [8, 8], "channels": [4, 4, 4, 4]}, "4 convolutions halve 8 x 8 pixels to nothing"),
        ({"image": [8, 8], "kernel_size": 4}, "kernel_size 4 is even"),
        ({"image": [8]}, "image"),
        ({}, "image"),
    ],
)
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, object], says: str):
    """By its config, before anything is built."""
    with pytest.raises(ValidationError, match=says):
        TypeAdapter(ModelConfig).validate_python({"kind": "cnn", **wrong})
