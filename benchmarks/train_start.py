"""How long a training takes to begin, and to begin again once a rank was killed: the decoder of `train_gpt.py` through the
real launcher, on Python's own documentation.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil

from benchmarks import train_gpt
from benchmarks.figures import Findings, Sample, Samples, compare
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import topics_jsonl
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import CheckpointConfig, OptimizerConfig, RankEvent, StopConfig, TrainConfig, train

START_SECONDS, WAY_BACK_SECONDS = 6.0, 15.0
SELDOM = CheckpointConfig()
OURS, BOUND = "modelyard.train", "the bound"
START, WAY_BACK = "start: from a rank's process to its first step", "a rank is killed: to training again"
NOTE = (
    "The start: one rank, from the start of its process (imports, the group, rows from the bucket, the network, what the"
    " device can do) to the end of its first step, without torch.compile. The way back: two ranks, of which one gets"
    " SIGKILL after a checkpoint, to the end of the first step after the group has gone on from it."
)


def measure(settings: Settings, *, rounds: int) -> Findings:
    """Seconds of both, against what was promised."""
    catalog = Catalog(Store(settings))
    dataset = _texts(catalog)
    samples: Samples = {START: [], WAY_BACK: []}
    for number in range(rounds):
        samples[START].append(_start(catalog, dataset, seed=number))
        samples[WAY_BACK].append(_way_back(catalog, dataset, seed=number))
    figures = []
    for name, bound in ((START, START_SECONDS), (WAY_BACK, WAY_BACK_SECONDS)):
        sides: Samples = {OURS: samples[name], BOUND: [{"s": bound}] * rounds}
        figures.append(compare(sides, "s", subject=OURS, against=BOUND, name=name, unit="s", better="less", target=1.0))
    return Findings(figures=figures, notes=[NOTE])


def _start(catalog: Catalog, dataset: ArtifactRef, *, seed: int) -> Sample:
    """The first event of a step is sent as soon as it is made, before anything is validated or saved."""
    moments: dict[str, float] = {}

    def on_event(event: RankEvent) -> None:
        if event.kind == "started":
            (rank,) = _ranks()
            moments["process"] = rank.create_time()
        if event.step:
            moments.setdefault("stepped", event.time)

    config = _config(ranks=1, seed=seed, stop=StopConfig(max_steps=1))
    train(catalog, dataset, config, Origin(), on_event)
    return {"s": moments["stepped"] - moments["process"]}


def _way_back(catalog: Catalog, dataset: ArtifactRef, *, seed: int) -> Sample:
    """The first figures are reported a second after the start at the soonest, so steps may have been made before."""
    moments: dict[str, float] = {}
    steps = 12
    config = _config(ranks=2, seed=seed, stop=StopConfig(max_steps=steps), checkpoint=CheckpointConfig(every_steps=2))
    train(catalog, dataset, config, Origin(), _killer(moments))
    return {"s": moments["stepped"] - moments["killed"]}


def _killer(moments: dict[str, float]) -> Callable[[RankEvent], None]:
    def on_event(event: RankEvent) -> None:
        if event.kind == "checkpoint" and "killed" not in moments:
            os.kill(_ranks()[-1].pid, signal.SIGKILL)
            moments["killed"] = time.time()
        elif event.kind == "started" and "killed" in moments:
            moments["resumed"] = event.time
        elif "resumed" in moments and event.kind in ("progress", "validation", "checkpoint"):
            moments.setdefault("stepped", event.time)

    return on_event


def _ranks() -> list[psutil.Process]:
    family = psutil.Process().children(recursive=True)
    return [one for one in family if "modelyard.train.worker" in one.cmdline() and _is_rank(one)]


def _is_rank(process: psutil.Process) -> bool:
    return "modelyard.train.launcher" not in process.cmdline()


def _config(*, ranks: int, seed: int, stop: StopConfig, checkpoint: CheckpointConfig = SELDOM) -> TrainConfig:
    return TrainConfig(
        model=train_gpt.NETWORK,
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4),
        batch_size=4,
        precision="bf16",
        ranks=ranks,
        seed=seed,
        stop=stop,
        checkpoint=checkpoint,
    )


def _texts(catalog: Catalog) -> ArtifactRef:
    """Python's documentation as sequences of the decoder's length, in its vocabulary."""
    folder = f"{catalog.store.root}/raw/bench-topics"
    for name, body in topics_jsonl():
        catalog.store.put(f"{folder}/{name}", body)
    tokens = {"vocabulary": train_gpt.VOCABULARY, "sequence_length": train_gpt.LENGTH}
    config = PreprocessConfig.model_validate(
        {"task": "language_modelling", "target": "text", "identity": ["topic"], "transform": {"tokens": tokens}}
    )
    source = snapshot(catalog, f"{folder}/*.jsonl", Origin())
    return preprocess(catalog, source.ref, config, Origin()).ref
