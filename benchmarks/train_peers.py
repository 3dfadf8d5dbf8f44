"""Lightning, Accelerate and transformers' Trainer over the rows, order, network and optimizer of the bare loop.

Each as its own documentation has it, with what it writes and draws switched off. Accelerate and transformers are of this
environment; Lightning is installed beside it, without its dependencies that are here, and kept from run to run.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.servers import ENVIRONMENTS, INSTALL_SECONDS, problem_of
from commands.environment import PROJECT
from modelyard.models import GptConfig
from modelyard.settings import Settings
from modelyard.train import TrainConfig

LIGHTNING = ("lightning==2.6.6", "pytorch-lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0")
ACCELERATE, TRAINER, LIGHTNING_NAME = "Accelerate", "transformers' Trainer", "Lightning"
Work = Callable[[Settings, TrainConfig, Any, Any, str], dict[str, float]]
NOTE = (
    "The peers train the same network on the same rows in the same order with the same optimizer, through a DataLoader"
    " without processes, and neither log, draw nor save; ours reports, and validates once."
)


def available() -> tuple[Mapping[str, Work], list[str]]:
    """Who can be measured, and why the others cannot."""
    found: dict[str, Work] = {}
    notes = [NOTE]
    for name, module, work in [(ACCELERATE, "accelerate", accelerate_loop), (TRAINER, "transformers", trainer_loop)]:
        if importlib.util.find_spec(module):
            found[name] = work
        else:
            notes.append(f"{name} was not measured: {module} is not installed.")
    problem = _install_lightning()
    if problem is None:
        found[LIGHTNING_NAME] = lightning_loop
    else:
        notes.append(f"{LIGHTNING_NAME} was not measured: {problem}")
    return found, notes


def accelerate_loop(
    settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str
) -> dict[str, float]:
    """The loop of Accelerate's own introduction."""
    from accelerate import Accelerator

    del settings, name
    network, optimizer = _prepared(config)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if config.precision == "bf16" else "no")
    network, optimizer, loader = accelerator.prepare(network, optimizer, _loader(config, features, targets))
    loss_of, total = _loss(config), 0.0
    began = time.perf_counter()
    for rows, answers in loader:
        optimizer.zero_grad()
        loss = loss_of(network(rows), answers)
        accelerator.backward(loss)
        optimizer.step()
        total += loss.detach()
    return _figures(config, time.perf_counter() - began, float(total))


def trainer_loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    """`transformers.Trainer` with a network that gives its own loss."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    del settings, name
    network, optimizer = _prepared(config)
    loss_of = _loss(config)
    moments: dict[str, float] = {}

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": loss_of(self.network(rows), labels)}

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            moments["began"] = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            moments["ended"] = time.perf_counter()

    class InOrder(Trainer):
        def get_train_dataloader(self) -> Any:
            return _loader(config, features, targets, named=True)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=config.stop.max_steps or 0, per_device_train_batch_size=config.batch_size,
            max_grad_norm=0.0, lr_scheduler_type="constant", bf16=config.precision == "bf16", use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(model=WithLoss(), args=arguments, optimizers=(optimizer, None), callbacks=[Clock()])
        found = trainer.train()
    return _figures(config, moments["ended"] - moments["began"], found.training_loss * (config.stop.max_steps or 0))


def lightning_loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    """A LightningModule under `lightning.Trainer`."""
    import warnings

    sys.path.append(str(_lightning_folder()))
    warnings.simplefilter("ignore")
    import lightning  # ty: ignore[import-not-found]

    del settings, name
    network, optimizer = _prepared(config)
    loss_of = _loss(config)
    moments: dict[str, float] = {"loss": 0.0}

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, number: int) -> Any:  # noqa: ARG002 (Lightning's signature)
            rows, answers = batch
            loss = loss_of(self.network(rows), answers)
            moments["loss"] += loss.detach()
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer

        def on_train_start(self) -> None:
            moments["began"] = time.perf_counter()

        def on_train_end(self) -> None:
            moments["ended"] = time.perf_counter()

    trainer = lightning.Trainer(
        max_steps=config.stop.max_steps or 0, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )  # fmt: skip
    trainer.fit(Module(), _loader(config, features, targets))
    return _figures(config, moments["ended"] - moments["began"], float(moments["loss"]))


def _prepared(config: TrainConfig) -> tuple[Any, Any]:
    """The network as the seed makes it, and the bare loop's optimizer."""
    import torch

    from benchmarks import train, train_gpt
    from modelyard.models.build import build_model

    sizes = (train_gpt.LENGTH, train_gpt.VOCABULARY) if _is_decoder(config) else (train.WIDTH, train.CLASSES)
    network = build_model(config.model, *sizes)
    rate = config.optimizer.learning_rate
    if _is_decoder(config):
        return network, torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0, fused=True)
    return network, torch.optim.Adam(network.parameters(), lr=rate, fused=True)


def _loss(config: TrainConfig) -> Callable[[Any, Any], Any]:
    from torch.nn.functional import cross_entropy

    if _is_decoder(config):
        return lambda scores, wanted: cross_entropy(scores.float().flatten(0, 1), wanted.flatten())
    return cross_entropy


def _loader(config: TrainConfig, features: Any, targets: Any, *, named: bool = False) -> Any:
    """As many batches as there are steps, in the order of our first epoch."""
    from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

    from modelyard.train.order import epoch_order

    class Named(Dataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"rows": features[index], "labels": targets[index]}

        def __len__(self) -> int:
            return len(targets)

    steps = config.stop.max_steps or 0
    order = epoch_order(len(targets), config.seed, 0)[: steps * config.batch_size].tolist()
    rows: Any = Named() if named else TensorDataset(features, targets)
    return DataLoader(Subset(rows, order), batch_size=config.batch_size)


def _is_decoder(config: TrainConfig) -> bool:
    return isinstance(config.model, GptConfig)


def _figures(config: TrainConfig, seconds: float, total: float) -> dict[str, float]:
    """What the benchmarks of the perceptron and of the decoder each read."""
    from benchmarks import train_gpt

    steps = config.stop.max_steps or 0
    rows = steps * config.batch_size / seconds
    return {
        "us per step": seconds / steps * 1e6,
        "ms per step": seconds / steps * 1e3,
        "rows/s": rows,
        "tokens/s": rows * train_gpt.LENGTH,
        "loss": total / steps,
    }


def _lightning_folder() -> Path:
    return ENVIRONMENTS / LIGHTNING[0].replace("==", "-")


def _install_lightning() -> str | None:
    """Put it beside this environment, if need be; why not, where it cannot be. One that broke off is made anew."""
    folder = _lightning_folder()
    mark = folder / ".complete"
    if mark.exists():
        return None
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *LIGHTNING]
    if problem := problem_of(command, INSTALL_SECONDS, PROJECT):
        return problem
    mark.touch()
    return None
