"""The training stage: real multi-process training through torch's elastic launcher.

    stage.py          `train`: launch, follow, and publish the model artifact
    config.py         what a user says; sections.py and strategy_config.py: its parts
    requirements.py   what is refused before a rank is started; rank_checks.py: what a rank refuses before its first step
    launch.py         one launched group of ranks, seen from the process that asked for it
    device_locks.py   which accelerators are a training's
    nodes.py          how several machines find each other
    launcher.py       the process in which torch's launcher runs   (python -m modelyard.train.launcher)
    ray_launcher.py  ray_group.py  ray_agent.py  ray_placement.py
                      the process that has a Ray cluster start the ranks; one try of it; what runs on each node; what goes
                      where
    worker.py         the process of one rank                      (started by the launcher)
    rank.py           what it does
    assembly.py       from what a rank is told to its trainer
    publish.py        the model artifact of a finished training
    rows.py           the rows it draws from; tagged_rows.py, masked_rows.py, pair_rows.py: of single tasks; local_rows.py:
                      where they lie on a machine
    pretrained_network.py  taking.py  adapters.py
                      networks of `transformers`: made whole; published as they come; trained in part
    starting.py  starting_checkpoint.py
                      other models, and other trainings' checkpoints, that it begins from or learns from
    first_weights.py  those of a network that no rank could hold whole
    loop.py           the course: steps, checkpoints, the way back, the end
    validation.py     metrics over the ranks' shares of a split; pair_validation.py: of pairs
    stepper.py        one optimizer step; with losses.py, contrast.py, distillation.py, hidden_states.py, optimizers.py,
                      schedules.py, precision.py, averaging.py, parallelize.py, tensor_plans.py
    strategies.py     which stepper a rank gets: stepper.py's, or that of parameter_server.py (with holdings.py,
                      step_queue.py, messages.py), diloco.py
    order.py          which rows come when
    agreement.py      what all ranks decide alike
    stop.py           when it ends
    progress.py  snapshots.py  saver.py  checkpoints.py  resume.py
                      state as plain values; as tensors; written beside training; as files in the bucket; put back
    costs.py  memory.py  plots.py  devices.py
                      what a step costs; what a network would take; the course as a picture; what ranks run on
    events.py  pulse.py   what ranks tell; where each stands

Ranks import neither Prefect nor MLflow.
"""

from modelyard.train.config import TrainConfig
from modelyard.train.events import RankEvent, is_rank_figure
from modelyard.train.requirements import require_factory
from modelyard.train.sections import (
    CheckpointConfig,
    DistillConfig,
    HiddenConfig,
    InitConfig,
    LoraConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
)
from modelyard.train.stage import HISTORY_FILE, SAMPLES_FILE, beginnings, train, training_work, validations_so_far
from modelyard.train.starting import Parents, trained_model
from modelyard.train.strategy_config import (
    DeviceName,
    DilocoConfig,
    FsdpConfig,
    HsdpConfig,
    ParameterServerConfig,
    RayConfig,
    TensorConfig,
)

__all__ = [
    "HISTORY_FILE",
    "SAMPLES_FILE",
    "CheckpointConfig",
    "DeviceName",
    "DilocoConfig",
    "DistillConfig",
    "FsdpConfig",
    "HiddenConfig",
    "HsdpConfig",
    "InitConfig",
    "LoraConfig",
    "OptimizerConfig",
    "ParameterServerConfig",
    "Parents",
    "RankEvent",
    "RayConfig",
    "ScheduleConfig",
    "StopConfig",
    "TensorConfig",
    "TrainConfig",
    "beginnings",
    "is_rank_figure",
    "require_factory",
    "train",
    "trained_model",
    "training_work",
    "validations_so_far",
]
