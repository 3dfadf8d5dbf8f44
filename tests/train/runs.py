"""Trainings without a launcher: the real Trainer on small data, in whatever group this process is a rank of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from modelyard.metrics import ClassificationMetrics, Metric
from modelyard.models import MlpConfig
from modelyard.models.build import build_model
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import RankEvent, TrainConfig
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.local_rows import LocalRows
from modelyard.train.loop import Trainer
from modelyard.train.rows import Split
from modelyard.train.snapshots import model_tensors
from modelyard.train.validation import Objective

WIDTH, CLASSES, ROWS = 8, 3, 90
CPU = torch.device("cpu")
PLAIN = TrainConfig(model=MlpConfig(hidden_sizes=(16, 16), dropout=0.1), batch_size=8, max_epochs=3, ranks=1)


def blobs(rows: int = ROWS, seed: int = 0) -> Split:
    """Three classes that a small network learns in a few epochs."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (rows,), generator=draw)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    return Split(features=centres[targets] + 0.5 * torch.randn(rows, WIDTH, generator=draw), targets=targets)


def local_rows(settings: Settings) -> LocalRows:
    """Where the ranks of the test's installation keep their rows."""
    return LocalRows(settings.data_cache_folder, 10**9)


def classifier(metric: str = "accuracy") -> Objective:
    def new_metric() -> Metric:
        return ClassificationMetrics(CLASSES)

    return Objective(loss="cross_entropy", metric=metric, new_metric=new_metric)


def trainer(
    settings: Settings,
    folder: str,
    config: TrainConfig,
    emit: Callable[[RankEvent], None] = lambda _: None,
    *,
    train: Split | None = None,
    network: torch.nn.Module | None = None,
    objective: Objective | None = None,
    store: Store | None = None,
) -> Trainer:
    """A trainer on the blobs, its checkpoints below ``folder`` of the test's bucket."""
    torch.manual_seed(config.seed)
    store = store or Store(settings)
    return Trainer(
        config,
        network or build_model(config.model, WIDTH, CLASSES),
        CPU,
        train=train or blobs(),
        validation=blobs(40, seed=1) if train is None else train,
        objective=objective or classifier(),
        checkpoints=Checkpoints(store, f"{store.root}/tests/{folder}", config.checkpoint),
        emit=emit,
    )


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    """Whole weights, also of a sharded network; every rank has to ask."""
    state = model_tensors(made.stepper.network)
    whole = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state.items()}
    return {name: value.detach().clone() for name, value in whole.items()}


def fitted(settings: Settings, folder: str, config: TrainConfig) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The validations and the final weights of a training."""
    made = trainer(settings, folder, config)
    progress = made.fit()
    return json.loads(json.dumps(progress.validations)), {name: value.numpy() for name, value in weights(made).items()}


def loss_curve(settings: Settings, folder: str, config: TrainConfig, steps: int) -> list[float]:
    """The global mean loss of each of the first steps."""
    return losses_of(trainer(settings, folder, config), steps)


def losses_of(made: Trainer, steps: int) -> list[float]:
    """The same for a trainer that is there already."""
    losses = []
    for _ in range(steps):
        before = made.loss_sum.clone()
        rows = made.progress.rows_counted
        made._train_steps()
        change = made.loss_sum - before
        torch.distributed.all_reduce(change)
        losses.append(float(change) / (made.progress.rows_counted - rows))
    return losses


def stop_after(made: Trainer, at_step: int) -> None:
    """Ask a training to end after a step, as SIGTERM does."""
    step = made.stepper.step

    def stop_there(*arguments: Any) -> Any:
        if arguments[2] + 1 == at_step:
            made.terminate = True
            made.agreement._next_step = 0  # small steps: the next meeting may be a whole training away
        return step(*arguments)

    made.stepper.step = stop_there  # ty: ignore[invalid-assignment]
