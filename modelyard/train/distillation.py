"""Learning from a teacher's answers beside the labels: Hinton, Vinyals and Dean 2015, arXiv 1503.02531."""

from __future__ import annotations

import math

import torch
from torch import nn

from modelyard.task_kinds import NO_TOKEN
from modelyard.train.config import TrainConfig
from modelyard.train.hidden_states import HiddenStates
from modelyard.train.losses import LOSSES
from modelyard.train.precision import Precision
from modelyard.train.sections import DistillConfig

# Of these a row asks about some of its tokens.
ASKED_TOKENS = ("token_tags", "masked_token")


def soft_cross_entropy(outputs: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over rows of T^2 times the divergence from the student's softened answers to the teacher's, in nats.

    The factor T^2 keeps the gradients' size as the temperature changes. Outputs and taught are (n, ..., k), raw; where
    there is more than one answer a row, its mean counts.
    """
    student = nn.functional.log_softmax(outputs / temperature, dim=-1)
    teacher = nn.functional.log_softmax(taught / temperature, dim=-1)
    divergence = nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    # The sizes in full: a rank's share of a batch may be empty, and then -1 would stand for anything.
    answers = math.prod(divergence.shape[1:])
    return divergence.reshape(len(outputs), answers).mean(1).sum() * temperature**2


def soft_token_cross_entropy(
    outputs: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The same for answers to single tokens of a text, (n, t, k): of a row the mean over those that ``targets`` (n, t) ask
    about. The others, whatever fills up a batch among them, teach nothing."""
    asked = targets != NO_TOKEN
    row, place = asked.nonzero(as_tuple=True)
    num_asked = asked.sum(1).clamp(min=1).to(outputs.dtype)
    student = nn.functional.log_softmax(outputs[row, place] / temperature, dim=-1)
    teacher = nn.functional.log_softmax(taught[row, place] / temperature, dim=-1)
    divergence = nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (divergence / num_asked[row]).sum() * temperature**2


class Teacher:
    """A trained network that is asked about every row; whole on each rank, never changed.

    Args:
        network: in evaluation mode.
        scale, shift: bring its outputs into the student's units (a regression is standardised by its own data set).
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        config: DistillConfig,
        *,
        loss: str,
        precision: Precision,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self._network = network.to(device).eval().requires_grad_(requires_grad=False)
        self._config, self._precision = config, precision
        self._scale, self._shift = scale, shift
        self._loss = loss
        self.hidden: HiddenStates | None = None

    def watch(
        self, student: nn.Module, examples: tuple[torch.Tensor, torch.Tensor], config: TrainConfig, device: torch.device
    ) -> None:
        """Teach the student by hidden states as well, where the config asks for it.

        Args:
            examples: features of some rows as the student and as the teacher take them.

        Raises:
            ConfigError: the layers do not fit each other.
        """
        if self._config.hidden:
            self.hidden = HiddenStates(
                self._config.hidden,
                config.optimizer,
                student,
                self._network,
                examples=examples,
                device=device,
                seed=config.seed,
            )

    def mixed(
        self, loss: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """The loss against the labels and that against the teacher, summed over rows, by the weight of each.

        Args:
            targets: of the rows; they say which tokens are asked about.
            features: as the teacher takes them.
        """
        taught = self._outputs(features)
        if self._loss == "mean_squared_error":
            own = LOSSES["mean_squared_error"](outputs, taught)
        elif self._loss in ASKED_TOKENS:
            own = soft_token_cross_entropy(outputs, taught, targets, self._config.temperature)
        else:
            own = soft_cross_entropy(outputs, taught, self._config.temperature)
        answers = (1 - self._config.weight) * loss + self._config.weight * own
        return answers + self.hidden.loss(features) if self.hidden else answers

    @torch.no_grad()
    def _outputs(self, features: torch.Tensor) -> torch.Tensor:
        with self._precision.autocast():
            return self._network(features).float() * self._scale + self._shift
