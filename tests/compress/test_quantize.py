"""Techniques on networks of several shapes, without a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from modelyard.compress import DynamicInt8, StaticInt8
from modelyard.compress.config import Technique
from modelyard.compress.export import export_onnx
from modelyard.compress.forms import from_onnx
from modelyard.errors import ConversionFailed
from modelyard.models import CnnConfig, MlpConfig
from modelyard.models.cnn import Cnn
from modelyard.models.mlp import Mlp
from modelyard.runtime import Runtime, RuntimeSpec, open_runtime
from tests.workbench import PROPERTY

WIDTH = 30
ROWS = np.random.default_rng(0).normal(size=(600, WIDTH)).astype(np.float32)


class Attentive(nn.Module):
    """What an Mlp does not have: layers without bias, a normalisation, a bare matrix product, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 37, bias=False), nn.LayerNorm(37), nn.SiLU())
        self.matrix = nn.Parameter(torch.randn(37, 5))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.inner(features) @ self.matrix, dim=-1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # Widths that no vector register divides, so that every kernel's remainder loop takes part.
    "relu": lambda: Mlp(MlpConfig(hidden_sizes=(67, 13)), WIDTH, 7),
    "attentive": Attentive,
    "cnn": lambda: Cnn(CnnConfig(kind="cnn", image=(5, 6), channels=(7,), hidden=13, activation="gelu"), 7),
}


class Exported:
    """A network's float file, and what techniques make of it."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        self.folder = folder
        export_onnx(network, WIDTH, folder / "float.onnx")

    def quantize(self, technique: Technique) -> Path:
        return self.folder / from_onnx(self.folder / "float.onnx", self.folder, technique.form, technique, ROWS).file

    def open(self, technique: Technique) -> Runtime:
        return open_runtime(RuntimeSpec(file=self.quantize(technique).name, precision="int8"), self.folder)


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[request.param]()
    return Exported(network, tmp_path_factory.mktemp("quantize"))


def test_a_row_does_not_feel_its_batch_mates(exported: Exported):
    """Static int8: the same bits alone, and in any company, in any order, with rows of any size."""
    runtime = exported.open(StaticInt8())
    rows = np.concatenate([ROWS, ROWS[:50] * 100])
    alone = np.concatenate([runtime.run(row[None]) for row in rows])

    @PROPERTY
    @given(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=70))
    def holds(chosen: list[int]) -> None:
        np.testing.assert_array_equal(runtime.run(rows[chosen]), alone[chosen], strict=True)

    holds()


def test_dynamic_int8_does_feel_them(exported: Exported):
    """Why it is not the default: one larger row moves the answers of all others in its call."""
    runtime = exported.open(DynamicInt8())
    alone = runtime.run(ROWS[:1])[0]
    beside_another = runtime.run(np.stack([ROWS[0], ROWS[1] * 3]))[0]
    assert np.abs(beside_another - alone).max() > 1e-3 * np.abs(alone).max()


def test_sums_cannot_saturate(exported: Exported):
    """Without VNNI, two products of a uint8 and a weight are added in 16 bits: the default leaves room for any two."""
    model = onnx.load(exported.quantize(StaticInt8()))
    weights = [
        numpy_helper.to_array(part).astype(int)
        for part in model.graph.initializer
        if part.data_type == onnx.TensorProto.INT8 and len(part.dims) >= 2
    ]
    assert weights
    assert all(2 * 255 * np.abs(weight).max() <= np.iinfo(np.int16).max for weight in weights)


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_every_calibration_is_deterministic(exported: Exported, calibration: str, capfd: pytest.CaptureFixture[str]):
    """The same rows give the same bytes and outputs near the float ones, and nothing is printed."""
    technique = StaticInt8.model_validate({"calibration": calibration, "calibration_rows": 300})
    once, again = exported.quantize(technique).read_bytes(), exported.quantize(technique).read_bytes()
    assert once == again
    expected = open_runtime(RuntimeSpec(file="float.onnx", precision="fp32"), exported.folder).run(ROWS)
    difference = np.abs(exported.open(technique).run(ROWS) - expected).max()
    assert difference < 0.1 * np.abs(expected).max()
    assert capfd.readouterr().out == ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_network_of_no_numbers_is_refused(tmp_path: Path):
    """No range fits NaN; the sentence names the form."""
    network = nn.Linear(WIDTH, 2)
    nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(ConversionFailed, match=r"^int8 cannot be made of float\.onnx: "):
        Exported(network, tmp_path).quantize(StaticInt8())
    assert not list(tmp_path.glob("*.prepared.onnx"))
