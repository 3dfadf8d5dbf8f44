"""Networks from configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelyard.errors import ConfigError, DataError
from modelyard.models import CustomConfig, MlpConfig, ModelSpec
from modelyard.models.build import build_model, load_model, save_model


def test_784_128_10_has_the_parameters_of_784_128_10():
    """The reference network: 784*128 + 128 + 128*10 + 10 parameters, with dropout between the layers."""
    network = build_model(MlpConfig(hidden_sizes=(128,), dropout=0.2), 784, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 784 * 128 + 128 + 128 * 10 + 10
    assert any(isinstance(layer, torch.nn.Dropout) and layer.p == 0.2 for layer in network.modules())


def test_saved_network_computes_the_same(tmp_path: Path):
    """Saving and loading changes no output bit, and the same weights make the same bytes."""
    spec = ModelSpec(model=MlpConfig(hidden_sizes=(5, 3)), input_width=4, output_width=2)
    network = build_model(spec.model, 4, 2).eval()
    save_model(spec, network.state_dict(), tmp_path)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_model(spec, network.state_dict(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first
    rows = torch.randn(7, 4)
    assert torch.equal(load_model(tmp_path)(rows), network(rows))


def test_weights_of_another_network_are_refused(tmp_path: Path):
    """Weights that do not fit the described network are a data error, not a stack trace of torch."""
    spec = ModelSpec(model=MlpConfig(hidden_sizes=(5,)), input_width=4, output_width=2)
    save_model(spec, build_model(MlpConfig(hidden_sizes=(6,)), 4, 2).state_dict(), tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors does not fit"):
        load_model(tmp_path)


@pytest.mark.parametrize("factory", ["no_such_module:build", "modelyard.models:no_such_function"])
def test_factory_that_cannot_be_imported_names_its_field(factory: str):
    """The sentence names the preset key to mend."""
    with pytest.raises(ConfigError, match=r"train\.model\.factory"):
        build_model(CustomConfig(kind="custom", factory=factory), 4, 2)


def test_factory_that_returns_no_network_is_refused():
    """A factory must return a torch Module."""
    with pytest.raises(ConfigError, match="returned"):
        build_model(CustomConfig(kind="custom", factory="tests.models.test_build:not_a_network"), 4, 2)


def not_a_network(**sizes: int) -> int:
    return sizes["input_width"]
