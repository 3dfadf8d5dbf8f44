"""One rank of a training run. Started by torch's launcher: ``python -m modelyard.train.worker <spec.json>``.

It reads the data set and writes checkpoints through the object store, and tells the rest through events.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Catalog
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, PermanentError
from modelyard.models.build import build_model
from modelyard.settings import load_settings
from modelyard.storage import Store
from modelyard.task_kinds import task_kind
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.config import TrainConfig
from modelyard.train.devices import backend_for, rank_device
from modelyard.train.events import EventWriter, RankEvent
from modelyard.train.launcher import exit_with_parent
from modelyard.train.loop import Objective, Trainer
from modelyard.train.stepper import Split

# Longer than any step, shorter than the silence after which the launching process gives up.
COLLECTIVE_TIMEOUT = timedelta(seconds=60)
log = logging.getLogger(__name__)


class RankSpec(Frozen):
    """What a rank is told, as a file: the same for all of them."""

    dataset: ArtifactRef
    config: TrainConfig
    checkpoints: str


def main() -> None:
    """Run one rank; an error is told as an event before the process ends with status 1."""
    exit_with_parent()
    events = EventWriter(int(os.environ["RANK"]))
    spec = RankSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    try:
        _train(spec, events)
    except Exception as failure:  # noqa: BLE001 - whatever it is, the launching process must hear of it
        traceback.print_exc()
        events.emit(_failed(failure))
        # Other ranks may sit in a collective with this one: no orderly teardown is possible.
        os._exit(1)


def _train(spec: RankSpec, events: EventWriter) -> None:
    device = rank_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # ranks are the parallelism; two threads each would fight for the cores
    distributed.init_process_group(backend_for(device), timeout=COLLECTIVE_TIMEOUT)
    store = Store(load_settings())
    with tempfile.TemporaryDirectory(prefix="modelyard-rank-") as scratch:
        dataset = Dataset.fetch(Catalog(store), spec.dataset, Path(scratch), ["train", "validation"])
        train, validation = Split.of(*dataset.load("train")), Split.of(*dataset.load("validation"))
    kind = task_kind(dataset.target.task)
    width = kind.output_width(dataset.target)
    torch.manual_seed(spec.config.seed)  # initial weights do not depend on the number of ranks
    network = build_model(spec.config.model, dataset.transform.width, width)
    require_outputs(network, train, width)
    trainer = Trainer(
        spec.config,
        network,
        device,
        train=train,
        validation=validation,
        objective=Objective(
            loss=kind.loss,
            metric=spec.config.stop.metric or kind.headline,
            new_metric=lambda: kind.metric(dataset.target),
        ),
        checkpoints=Checkpoints(store, spec.checkpoints, spec.config.checkpoint),
        emit=events.emit,
    )
    signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "terminate", True))
    progress = trainer.fit()
    if trainer.stepper.rank == 0:
        best, stopped_by = progress.best_validation, progress.stopped_by
        events.emit(RankEvent(kind="finished", step=progress.step, values=best, message=stopped_by))
    distributed.barrier()
    distributed.destroy_process_group()


def require_outputs(network: nn.Module, train: Split, width: int) -> None:
    """Refuse a network whose outputs do not fit the target, before it is trained: a label would lie out of range.

    Raises:
        ConfigError: names both shapes.
    """
    was_training, generators = network.training, torch.get_rng_state()
    with torch.no_grad():
        shape = tuple(network.eval()(train.features[:2]).shape)
    torch.set_rng_state(generators)
    network.train(was_training)
    if shape[1:] != (width,):
        expected = f"(n, {width})"
        raise ConfigError("train.model", f"the network's outputs are {('n', *shape[1:])}, the target needs {expected}")


def _failed(failure: Exception) -> RankEvent:
    """A collective that broke because another rank died is not this rank's fault: a restart may mend it."""
    broken_group = isinstance(failure, distributed.DistError | distributed.DistBackendError)
    ours = isinstance(failure, PermanentError)
    permanent = ours or (isinstance(failure, TypeError | ValueError | AttributeError | KeyError) and not broken_group)
    return RankEvent(kind="failed", message=str(failure), error=type(failure).__name__, permanent=permanent)


if __name__ == "__main__":
    main()
