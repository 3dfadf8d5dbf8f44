"""A student that learns from its teacher's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError
from modelyard.models import CnnConfig, MlpConfig
from modelyard.models.build import build_model
from modelyard.models.config import GptConfig
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import DistillConfig, HiddenConfig, OptimizerConfig, TrainConfig, train
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.hidden_states import HiddenStates, paired
from modelyard.train.sections import CheckpointConfig
from modelyard.train.snapshots import HIDDEN, PublishedWeights, shapes
from tests.train import runs
from tests.train.ranks import Ranks
from tests.workbench import quick_model

STUDENT, TEACHER = MlpConfig(hidden_sizes=(6, 5), dropout=0.0), MlpConfig(hidden_sizes=(6, 7, 9), dropout=0.0)


@pytest.fixture(scope="module")
def teacher(catalog: Catalog, dataset: ArtifactRef) -> ArtifactRef:
    return quick_model(catalog, dataset, epochs=60)


def lesson(config: HiddenConfig, student: nn.Module, teacher: nn.Module, example: torch.Tensor) -> HiddenStates:
    return HiddenStates(
        config, OptimizerConfig(), student, teacher, examples=(example, example), device=runs.CPU, seed=0
    )


@pytest.mark.parametrize("loss", ["squared_error", "cosine"])
def test_the_loss_is_the_distance_of_paired_layers(loss: Any):
    """Summed over rows, the mean over pairs, by the weight; through the projection where widths differ, else as they are; 0
    for a rank without rows, and nothing is kept behind it."""
    torch.manual_seed(1)
    student, teacher = build_model(STUDENT, 4, 3), build_model(TEACHER, 4, 3)
    rows = torch.randn(5, 4)
    made = lesson(HiddenConfig(layers={"layers.0": "layers.0", "layers.3": "layers.6"}, loss=loss, weight=0.5),
                  student, teacher, rows)  # fmt: skip
    assert {name: tuple(value.shape) for name, value in made.projections.named_parameters()} == {
        "1.weight": (9, 5),
        "1.bias": (9,),
    }
    made.listen()
    student(rows), teacher(rows)
    found = made.loss(rows).detach()

    def states(network: nn.Module, number: int) -> torch.Tensor:
        return network.get_submodule("layers")[: number + 1](rows).detach()

    projected = made.projections["1"](states(student, 3)).detach()
    pairs = [(states(student, 0), states(teacher, 0)), (projected, states(teacher, 6))]
    expected = [_distance(own.numpy(), its.numpy(), loss) for own, its in pairs]
    assert float(found) == pytest.approx(0.5 * np.mean(expected), rel=1e-5)

    made.listen()
    student(rows[:0]), teacher(rows[:0])
    assert float(made.loss(rows[:0]).detach()) == 0
    assert not made._own._heard


def _distance(own: np.ndarray, its: np.ndarray, loss: str) -> float:
    if loss == "squared_error":
        return float(((own - its) ** 2).mean(axis=1).sum())
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(its, axis=1)
    return float((1 - (own * its).sum(axis=1) / lengths).sum())


class Reader(nn.Module):
    """A network of tokens, which may be -1: there is none. Of two texts it reads one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)
        self.ends = nn.Linear(3, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.ends(self.table(tokens.reshape(-1, tokens.shape[-1]).clamp(min=0))).mean(1)


def test_what_fills_up_a_batch_does_not_count():
    """A short text is as far from its teacher's states as it is in a batch of its own; of a row of two texts the mean counts,
    and of a rank without rows nothing."""
    student, teacher = Reader(), Reader()
    config = HiddenConfig(layers={"table": "table"})
    rows = torch.tensor([[1, 2, -1, -1], [3, 4, 5, 6]])
    made = lesson(config, student, teacher, rows)
    found = []
    for batch in (rows, rows[:1, :2], rows[1:], rows[None], rows[None][:0]):
        made.listen()
        student(batch), teacher(batch)
        found.append(float(made.loss(batch).detach()))
    assert found[0] == pytest.approx(found[1] + found[2]) == pytest.approx(2 * found[3])
    assert min(found[:4]) > 0 == found[4]


def test_layers_are_paired_evenly_by_depth():
    """The last of each stretch; blocks of a language model, convolutions, hidden layers: what makes the outputs is none."""
    with torch.device("meta"):
        mlps = build_model(STUDENT, 4, 3), build_model(TEACHER, 4, 3)
        gpts = [build_model(GptConfig(kind="gpt", layers=n, width=8, heads=2), 8, 20) for n in (2, 6)]
        cnn = build_model(CnnConfig(kind="cnn", image=(8, 8)), 64, 3)
    assert paired(2, *mlps) == [("layers.0", "layers.0"), ("layers.3", "layers.6")]
    assert paired(1, *mlps) == [("layers.3", "layers.6")]
    assert paired(2, *gpts) == [("model.layers.0", "model.layers.2"), ("model.layers.1", "model.layers.5")]
    assert [own for own, _ in paired(2, cnn, cnn)] == ["convolutions.0", "convolutions.3"]
    with pytest.raises(
        ConfigError, match="3 layers of 2 of the network and 3 of the teacher: name them, or take fewer"
    ):
        paired(3, *mlps)


def test_only_the_width_of_states_may_differ():
    """Two pictures of other sizes have no places in common; channels are a width."""
    small, large = (
        build_model(CnnConfig(kind="cnn", image=(8, 8), channels=size), 64, 3) for size in ((4, 6), (8, 16))
    )
    rows = torch.randn(2, 64)
    made = lesson(HiddenConfig(layers={"convolutions.3": "convolutions.3"}), small, large, rows)
    assert tuple(made.projections["0"].weight.shape) == (16, 6)
    made.listen()
    small(rows), large(rows)
    assert float(made.loss(rows).detach()) > 0
    with pytest.raises(
        ConfigError, match=r"convolutions\.3 gives \(n, 4, 4, 6\), the teacher's convolutions\.0 \(n, 8, 8, 8\)"
    ):
        lesson(HiddenConfig(layers={"convolutions.3": "convolutions.0"}), small, large, rows)


def learned(settings: Settings, spec: RankSpec) -> tuple[list[float], list[str]]:
    """The distance to the teacher's states on the training rows before and after; names of the network's weights."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    hidden = made.stepper.hidden
    assert hidden
    batch = made.train.batch(torch.arange(200))
    before, found = {name: value.clone() for name, value in hidden.projections.named_parameters()}, []
    for act in (lambda: None, made.fit):
        act()
        hidden.listen()
        made.stepper.network.eval()(batch.features)
        made.stepper._teacher._outputs(batch.features)
        found.append(float(hidden.loss(batch.features).detach()))
    assert all(bool((value != before[name]).any()) for name, value in hidden.projections.named_parameters())
    return found, list(shapes(made.stepper.network))


def test_a_student_comes_near_its_teachers_states(
    alone: Ranks,
    settings: Settings,
    store: Store,
    dataset: ArtifactRef,
    teacher: ArtifactRef,
    folder: str,
    tmp_path: Path,
):
    """Network and projection move together; a checkpoint holds both, and what is published is the network."""
    config = TrainConfig(
        model=MlpConfig(hidden_sizes=(20,), dropout=0.0), ranks=1, max_epochs=4, optimizer=OptimizerConfig(learning_rate=0.01),
        distill=DistillConfig(hidden=HiddenConfig(weight=5.0)),
    )  # fmt: skip
    spec = RankSpec(
        dataset=dataset, config=config, checkpoints=f"{store.root}/tests/{folder}/checkpoints", teacher=teacher
    )
    (((before, after), names),) = alone.run(learned, settings, spec)
    assert after < before / 3
    shelf = Checkpoints(store, spec.checkpoints, CheckpointConfig())
    pointer = shelf.pointers()[0]
    shelf.fetch(pointer, tmp_path)
    assert any(HIDDEN.encode() in path.read_bytes()[:10_000] for path in (tmp_path / "shards").glob("*.safetensors"))
    assert sorted(PublishedWeights(tmp_path, pointer.progress["shapes"]).described) == sorted(names)


def _no_rank(event: object) -> None:
    pytest.fail(f"a rank was started: {event}")


def test_layers_that_are_not_there_start_no_rank(catalog: Catalog, dataset: ArtifactRef, teacher: ArtifactRef):
    """The nearest names of the right side; and layers without a teacher."""

    def config(layers: dict[str, str]) -> TrainConfig:
        return TrainConfig(model=STUDENT, ranks=1, distill=DistillConfig(hidden=HiddenConfig(layers=layers)))

    with pytest.raises(
        ConfigError, match=r"train\.distill\.hidden\.layers: the network has no part 'layer\.3'; did you mean layers\.3"
    ):
        train(catalog, dataset, config({"layer.3": "layers.0"}), Origin(), _no_rank, teacher=teacher)
    with pytest.raises(
        ConfigError, match=r"the teacher has no part 'layers\.9'; did you mean .*There are layers, layers\.0"
    ):
        train(catalog, dataset, config({"layers.3": "layers.9"}), Origin(), _no_rank, teacher=teacher)
    with pytest.raises(
        ConfigError, match=r"train\.distill\.hidden: there is no teacher to learn from: name one in train"
    ):
        train(catalog, dataset, config({"layers.3": "layers.0"}), Origin(), _no_rank)


@pytest.mark.parametrize(("update", "words"), [
    ({"strategy": "diloco"}, "for ddp, fsdp and hsdp, not for diloco"),
    ({"compile": True}, "which compile melts together"),
    ({"precision": "fp16"}, "take bf16"),
    ({"distill": {"hidden": {"layers": {}}}}, "layers names none"),
    ({"distill": {"hidden": {"loss": "cosin"}}}, "did you mean 'cosine'"),
])  # fmt: skip
def test_what_layers_cannot_be_watched_with_is_refused(update: dict[str, Any], words: str):
    """Said where the preset is read, with what to take instead."""
    with pytest.raises(ValueError, match=words):
        TrainConfig.model_validate({"distill": {"hidden": {}}, **update})
