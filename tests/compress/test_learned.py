"""Networks that were trained to compute as int8 will, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import nn

from modelyard.compress import CompressConfig, MeasureConfig, QuantizeAware, SearchConfig, StaticInt8, candidates
from modelyard.compress.candidates import Bench
from modelyard.compress.check import check_operators
from modelyard.compress.forms import make_form
from modelyard.compress.learned import prepare_
from modelyard.compress.outcomes import Recipe
from modelyard.compress.search import Search
from modelyard.compress.workshop import Workshop
from modelyard.errors import ConversionFailed
from modelyard.models import CnnConfig, GptConfig, MlpConfig
from modelyard.models.cnn import Cnn
from modelyard.models.gpt import Gpt
from modelyard.models.mlp import Mlp
from modelyard.models.simulate import simulated
from modelyard.runtime import open_runtime
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, TrainConfig, train
from tests.workbench import ORIGIN, digits_dataset, own_catalog, quick_model

WIDTH = 30
ROWS = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "mlp": lambda: Mlp(MlpConfig(hidden_sizes=(67, 13), dropout=0), WIDTH, 7),
    "cnn": lambda: Cnn(CnnConfig(kind="cnn", image=(5, 6), channels=(7,), hidden=13, dropout=0), 7),
}


@pytest.mark.parametrize("kind", [pytest.param("mlp", marks=pytest.mark.soak), "cnn"])
def test_the_file_has_the_ranges_that_training_left(kind: str, tmp_path: Path):
    """After some steps of training: its scales are the network's own, and it answers as the network simulates."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[kind]().eval()
    with torch.no_grad():
        prepare_(network, ROWS)
    began = [layer.range.high.clone() for layer in simulated(network).values()]
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(ROWS * 1.5), torch.arange(400) % 7).backward()
        optimizer.step()
    network.eval()
    assert all(layer.range.high != high for layer, high in zip(simulated(network).values(), began, strict=True))
    spec = make_form(network, WIDTH, tmp_path, "aware", None, calibration=ROWS.numpy() * 9)
    assert [path.name for path in tmp_path.iterdir()] == ["aware.onnx"]
    assert check_operators(tmp_path / spec.file)["QuantizeLinear"] == 3
    values = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / spec.file).graph.initializer]
    stored = {float(one.ravel()[0]) for one in values if one.size == 1 and one.dtype == np.float32}
    assert {float(layer.range.steps()[0]) for layer in simulated(network).values()} <= stored
    answers = open_runtime(spec, tmp_path).run(ROWS.numpy())
    with torch.no_grad():
        expected = network(ROWS).numpy()
    difference = np.abs(answers - expected) / np.abs(expected).max()
    assert np.median(difference) < 1e-4, "only where a sum lands between two steps may they differ"
    assert difference.max() < 0.02


def test_it_is_its_own_form():
    """A search makes no other forms of it, and none can be made."""
    search = Search(SearchConfig(networks=[QuantizeAware()], forms=[StaticInt8()]), "accuracy")
    assert set(search.recipes) == {"float", "int8", "int8-aware"}
    network = NETWORKS["mlp"]().eval()
    with torch.no_grad():
        prepare_(network, ROWS)
    with pytest.raises(ConversionFailed, match="static_int8 finds no float weights in it"):
        make_form(network, WIDTH, Path(), "x", StaticInt8(), calibration=ROWS.numpy())


def test_what_it_does_not_know_is_refused():
    """Networks of tokens, and a training without training."""
    gpt = Gpt(GptConfig(kind="gpt", layers=1, width=8, heads=2), 20)
    with pytest.raises(ConversionFailed, match="Gpt reads tokens"):
        prepare_(gpt, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValidationError, match="quantize_aware is a training"):
        QuantizeAware(recovery=None)


@pytest.mark.soak
def test_the_train_stage_trains_it(store: Store, settings: Settings):
    """Prepared, fine-tuned by ranks, built: an int8 candidate a quarter of the size whose ranges moved."""
    del store
    catalog = own_catalog(settings)
    dataset = digits_dataset(catalog)
    model = quick_model(catalog, dataset, epochs=30)
    config = CompressConfig(search=SearchConfig(), measure=MeasureConfig(repeats=3))
    technique = QuantizeAware()
    with Workshop() as workshop:
        bench = Bench(catalog=catalog, workshop=workshop, model=model, dataset=dataset, config=config)
        prepared = candidates.shrink(bench, technique, ORIGIN).ref
        gentle = TrainConfig(max_epochs=3, ranks=2, optimizer=OptimizerConfig(learning_rate=1e-4))
        tuned = train(catalog, dataset, gentle, ORIGIN, init=prepared).ref
        whole = candidates.build(bench, Recipe(), model, None, ORIGIN)
        aware = candidates.build(bench, Recipe(network=technique), tuned, None, ORIGIN)
    built, before = candidates.outcome_of(aware.manifest), candidates.outcome_of(whole.manifest)
    assert built.size_bytes < 0.5 * before.size_bytes
    assert built.parameters == before.parameters
    assert built.drops["accuracy"].drop < 0.01
    assert aware.manifest.provenance.measurements["parity"]["agreement_fraction"] > 0.99
