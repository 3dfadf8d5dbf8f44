"""Weights in few bits, a scale a block; and techniques that only an accelerator has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from modelyard.compress import AcceleratorOnly, Int4Weights, Int8Weights
from modelyard.compress.block_weights import OPERATOR
from modelyard.compress.check import check_operators
from modelyard.compress.export import export_onnx
from modelyard.compress.forms import from_onnx, make_form
from modelyard.compress.techniques import FormTechnique
from modelyard.errors import ConversionFailed
from modelyard.models import MlpConfig
from modelyard.models.mlp import Mlp
from modelyard.runtime import open_runtime

WIDTH = 30
ROWS = np.random.default_rng(0).normal(size=(80, WIDTH)).astype(np.float32)


class Bare(nn.Module):
    """Products of three shapes: with a bias, without, of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, 64), nn.Linear(32, 5, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.tanh(self.wide(features)).unflatten(1, (2, 32))).mean(dim=1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: Mlp(MlpConfig(hidden_sizes=(130, 70)), WIDTH, 7),
    "bare": Bare,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_products_keep_their_weights_in_few_bits(kind: str, tmp_path: Path):
    """Smaller by as much as bits say, near the float answers, the same bytes each time; a row does not feel its batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[kind]().eval()
    export_onnx(network, WIDTH, tmp_path / "float.onnx")
    with torch.inference_mode():
        expected = network(torch.from_numpy(ROWS)).numpy()
    level = logging.getLogger().level
    errors = []
    for technique, size in ((Int8Weights(), 0.6), (Int4Weights(), 0.5)):
        spec = from_onnx(tmp_path / "float.onnx", tmp_path, technique.form, technique, ROWS[:0])
        made = (tmp_path / spec.file).read_bytes()
        assert check_operators(tmp_path / spec.file)[OPERATOR] == sum(
            isinstance(x, nn.Linear) for x in network.modules()
        )
        if kind == "mlp":
            assert len(made) < size * (tmp_path / "float.onnx").stat().st_size
        runtime = open_runtime(spec, tmp_path)
        answers = runtime.run(ROWS)
        errors.append(float(np.abs(answers - expected).max() / np.abs(expected).max()))
        np.testing.assert_allclose(np.concatenate([runtime.run(row[None]) for row in ROWS]), answers, atol=1e-5)
        from_onnx(tmp_path / "float.onnx", tmp_path, technique.form, technique, ROWS[:0])
        assert (tmp_path / spec.file).read_bytes() == made
    assert errors[0] < 0.03
    assert errors[0] < errors[1] < 0.3
    assert logging.getLogger().level == level, "a library that configures everybody's logging at import"


def test_a_network_without_products_is_refused(tmp_path: Path):
    """There is nothing to store in few bits."""
    export_onnx(nn.Sequential(nn.ReLU(), nn.LayerNorm(WIDTH)).eval(), WIDTH, tmp_path / "float.onnx")
    with pytest.raises(ConversionFailed, match=r"float\.onnx has no matrix product with weights of its own"):
        from_onnx(tmp_path / "float.onnx", tmp_path, "x", Int4Weights(), ROWS[:0])


@pytest.mark.parametrize("name", ["torchao_int4", "gptq_int4", "sparse_2_4"])
def test_what_needs_an_accelerator_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Known by name, a form of that name, and a reason on a machine without, or with one that nothing serves on."""
    technique = TypeAdapter(FormTechnique).validate_python({"technique": name})
    assert isinstance(technique, AcceleratorOnly)
    assert technique.form == name.replace("_", "-")
    for present, reason in (
        (False, "this machine has none"),
        (True, "the endpoint executes forms on processors alone"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        sentence = f"{name} need a CUDA device of compute capability 8.0 or more, .*{reason}"
        with pytest.raises(ConversionFailed, match=sentence):
            make_form(nn.Linear(WIDTH, 2), WIDTH, tmp_path, "x", technique, calibration=ROWS)
    assert not list(tmp_path.iterdir())
