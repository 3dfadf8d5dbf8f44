"""The training stage: real multi-process training through torch's elastic launcher.

    stage.py        `train`: launch, follow, and publish the model artifact
    launch.py       one launched group of ranks, seen from the process that asked for it
    launcher.py     the process in which torch's launcher runs   (python -m modelyard.train.launcher)
    worker.py       one rank                                     (started by the launcher)
    loop.py         epochs and steps: tensors in, events out
    checkpoints.py  resumable state in the bucket
    events.py       what ranks tell

Ranks import neither Prefect nor MLflow.
"""

from modelyard.train.config import OptimizerConfig, TrainConfig
from modelyard.train.events import RankEvent
from modelyard.train.stage import require_factory, train, training_work

__all__ = ["OptimizerConfig", "RankEvent", "TrainConfig", "require_factory", "train", "training_work"]
