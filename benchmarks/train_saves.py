# ruff: noqa: SLF001 - a save is measured by itself, outside of a course
"""What a checkpoint costs the training that it is taken of: the decoder of `train_gpt.py` with its optimizer state."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import train_gpt
from benchmarks.figures import Findings, Samples, compare
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, TrainConfig

OURS, BUCKET = "modelyard.train", "the same save, waited for"
DISK, TORCH = "torch's dcp.save to the local disk", "torch's dcp.async_save to the local disk"
DISK_LIMIT, BUCKET_LIMIT = 0.3, 0.15
NOTE = (
    "Saves of the decoder and its AdamW, 206 MB in fp32: how long the next step waits. Ours copies, looks for NaN, and lets a"
    " thread write safetensors, hash, upload and publish; torch's writes its own format and neither looks, hashes nor"
    " publishes. The store runs on the same cores."
)


def measure(group: train_gpt.Group, *, rounds: int) -> Findings:
    """Seconds that training waits, against those of saves that it waits for."""
    config = TrainConfig(
        model=train_gpt.NETWORK,
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4),
        batch_size=2,
        precision="bf16",
        ranks=1,
    )
    turns = [group(config, saved) for _ in range(rounds + 1)][1:]  # the first one imports, and finds no memory yet
    samples: Samples = {who: [{"ms": turn[who]} for turn in turns] for who in turns[0]}
    name = "a save of 17 M weights: training waits"
    return Findings(
        figures=[
            compare(samples, "ms", subject=OURS, against=DISK, name=name, unit="ms", better="less", target=DISK_LIMIT),
            compare(samples, "ms", subject=OURS, against=BUCKET, name=name, unit="ms", better="less", target=BUCKET_LIMIT),
            compare(samples, "ms", subject=OURS, against=TORCH, name=name, unit="ms", better="less"),
        ],
        notes=[NOTE],
    )  # fmt: skip


def saved(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    """Milliseconds of each way to save a training that is two steps old."""
    from torch.distributed import checkpoint

    from modelyard.train.snapshots import shared_tensors

    trainer = train_gpt.trainer_of(settings, config, features, targets, name, lambda _: None)
    trainer._begin()
    for _ in range(2):
        trainer._train_steps()
    state: Any = shared_tensors(trainer.stepper)
    folder = Path(tempfile.mkdtemp(prefix="modelyard-bench-save-"))
    try:
        found = {}
        began = time.perf_counter()
        checkpoint.save(state, storage_writer=checkpoint.FileSystemWriter(folder / "waited"))
        found[DISK] = _milliseconds(began)
        began = time.perf_counter()
        under_way: Any = checkpoint.async_save(state, storage_writer=checkpoint.FileSystemWriter(folder / "beside"))
        found[TORCH] = _milliseconds(began)
        under_way.result()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    trainer._save()
    found[OURS] = _milliseconds(began)
    trainer._saver.wait()
    found[BUCKET] = _milliseconds(began)
    return found


def _milliseconds(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
