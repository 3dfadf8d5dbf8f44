"""What one rank of a training run does, in the process that `worker.py` is.

It reads the data set and writes checkpoints through the object store, and tells the rest through events.
"""

from __future__ import annotations

import os
import signal
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from modelyard.catalog import Catalog
from modelyard.errors import PermanentError
from modelyard.settings import load_settings
from modelyard.storage import Store
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.devices import backend_for, rank_device
from modelyard.train.events import EventWriter, RankEvent
from modelyard.train.local_rows import LocalRows
from modelyard.train.loop import Trainer
from modelyard.train.pulse import start_pulse

# Longer than any step, shorter than the silence after which the launching process gives up.
COLLECTIVE_TIMEOUT = timedelta(seconds=60)
ALIVE = RankEvent(kind="progress")


def run(spec_file: Path, events: EventWriter) -> None:
    """Take part in the training that a spec describes; an error is told as an event before the process ends with status 1."""
    standing: list[Trainer] = []
    start_pulse(events.emit, lambda: standing[0].progress.step if standing else 0)
    spec = RankSpec.model_validate_json(spec_file.read_bytes())
    try:
        _train(spec, events, standing)
    except Exception as failure:  # noqa: BLE001 - whatever it is, the launching process must hear of it
        traceback.print_exc()
        events.emit(_failed(failure))
        # Other ranks may sit in a collective with this one: no orderly teardown is possible.
        os._exit(1)


def _train(spec: RankSpec, events: EventWriter, standing: list[Trainer]) -> None:
    device = rank_device(spec.config.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # ranks are the parallelism; two threads each would fight for the cores
    distributed.init_process_group(backend_for(device), timeout=COLLECTIVE_TIMEOUT)
    settings = load_settings()
    rows = LocalRows(settings.data_cache_folder, int(settings.data_cache_gb * 1e9), lambda: events.emit(ALIVE))
    trainer = assemble(spec, Catalog(Store(settings)), device, events.emit, rows, counts_costs=True)
    standing.append(trainer)
    signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "terminate", True))
    progress = trainer.fit()
    if trainer.tells:
        best, stopped_by = progress.best_validation, progress.stopped_by
        events.emit(RankEvent(kind="finished", step=progress.step, values=best, message=stopped_by))
    distributed.barrier()
    distributed.destroy_process_group()


def _failed(failure: Exception) -> RankEvent:
    """A collective that broke because another rank died is not this rank's fault: a restart may mend it."""
    broken_group = isinstance(failure, distributed.DistError | distributed.DistBackendError)
    ours = isinstance(failure, PermanentError)
    permanent = ours or (isinstance(failure, TypeError | ValueError | AttributeError | KeyError) and not broken_group)
    return RankEvent(kind="failed", message=str(failure), error=type(failure).__name__, permanent=permanent)
