"""The training stage: real multi-process training through torch's elastic launcher.

    stage.py          `train`: launch, follow, and publish the model artifact
    requirements.py   what is refused before a rank is started
    launch.py         one launched group of ranks, seen from the process that asked for it
    launcher.py       the process in which torch's launcher runs   (python -m modelyard.train.launcher)
    worker.py         one rank                                     (started by the launcher)
    loop.py           the course: steps, validations, checkpoints, the way back, the end
    stepper.py        one optimizer step; with optimizers.py, schedules.py, precision.py, averaging.py, parallelize.py
    order.py          which rows come when
    agreement.py      what all ranks decide alike
    stop.py           when it ends
    progress.py  snapshots.py  saver.py  checkpoints.py  resume.py
                      state as plain values; as tensors; written beside training; as files in the bucket; put back
    events.py         what ranks tell

Ranks import neither Prefect nor MLflow.
"""

from modelyard.train.config import (
    CheckpointConfig,
    FsdpConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
    TrainConfig,
)
from modelyard.train.events import RankEvent
from modelyard.train.requirements import require_factory
from modelyard.train.stage import train, training_work

__all__ = [
    "CheckpointConfig",
    "FsdpConfig",
    "OptimizerConfig",
    "RankEvent",
    "ScheduleConfig",
    "StopConfig",
    "TrainConfig",
    "require_factory",
    "train",
    "training_work",
]
