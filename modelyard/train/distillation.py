"""Learning from a teacher's answers beside the labels: Hinton, Vinyals and Dean 2015, arXiv 1503.02531.

Where answers are vectors, what is learned is how alike a teacher holds the rows of a batch to be, so its vectors may be of
another width: its probabilities over the items of a batch (Lin, Yang and Lin 2020, arXiv 2010.11386; SEED, Fang et al. 2021,
arXiv 2101.04731), or its cosines (Tung and Mori 2019, arXiv 1907.09682).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from modelyard.task_kinds import NO_TOKEN
from modelyard.train.config import TrainConfig
from modelyard.train.contrast import PAIR_LOSSES, WEIGHT, Peers, Scoring, similarities
from modelyard.train.hidden_states import HiddenStates
from modelyard.train.losses import LOSSES
from modelyard.train.precision import Precision
from modelyard.train.sections import DistillConfig

# Of these a row asks about some of its tokens.
ASKED_TOKENS = ("token_tags", "masked_token")
# A student's outputs, its teacher's and the targets -> how far apart they are, summed over rows.
Lesson = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def divergence(outputs: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 times the divergence from a student's softened answers to its teacher's, in nats: (...) of raw ones (..., k).

    The factor T^2 keeps the gradients' size as the temperature changes.
    """
    student = nn.functional.log_softmax(outputs / temperature, dim=-1)
    teacher = nn.functional.log_softmax(taught / temperature, dim=-1)
    return nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def soft_cross_entropy(outputs: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over rows of the `divergence` of raw answers (n, ..., k); where there is more than one answer a row, its mean counts."""
    found = divergence(outputs, taught, temperature)
    # The sizes in full: a rank's share of a batch may be empty, and then -1 would stand for anything.
    answers = math.prod(found.shape[1:])
    return found.reshape(len(outputs), answers).mean(1).sum()


def soft_token_cross_entropy(
    outputs: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The same for answers to single tokens of a text, (n, t, k): of a row the mean over those that ``targets`` (n, t) ask
    about. The others, whatever fills up a batch among them, teach nothing."""
    asked = targets != NO_TOKEN
    row, place = asked.nonzero(as_tuple=True)
    num_asked = asked.sum(1).clamp(min=1).to(outputs.dtype)
    return (divergence(outputs[row, place], taught[row, place], temperature) / num_asked[row]).sum()


def soft_in_batch(
    outputs: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor, *, softness: float, scoring: Scoring
) -> torch.Tensor:
    """Sum over rows of the weighted `divergence` of what a student takes for each query's item, among those of the global
    batch, from what its teacher takes for it. Outputs and targets are those of `in_batch_softmax`; ``taught`` (n, 2, any width),
    ``softness`` softens the probabilities further."""
    told = scoring.peers.gathered(targets)
    own, its = (scoring.scores(one, told) for one in (outputs, taught))
    return (divergence(own, its, softness) * targets[:, WEIGHT]).sum()


def likeness_error(outputs: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor, *, peers: Peers) -> torch.Tensor:
    """Sum over rows of the mean squared difference between a student's cosines of the row's text with every partner of the
    global batch and its teacher's, outputs (n, 2, k) and (n, 2, any width)."""
    del targets
    own, its = (similarities(one, peers, cosine=True) for one in (outputs, taught))
    return (own - its).square().mean(1).sum()


def lesson_of(loss: str, config: TrainConfig) -> Lesson:
    """What is learned of a teacher's answers where labels are learned by the loss of that name. Every rank has to call it."""
    temperature = config.distill.temperature
    if loss == "mean_squared_error":
        return lambda outputs, taught, _: LOSSES[loss](outputs, taught)
    if loss in ASKED_TOKENS:
        return partial(soft_token_cross_entropy, temperature=temperature)
    if loss == "cosine_error":
        return partial(likeness_error, peers=Peers.of(config))
    if loss in PAIR_LOSSES:
        return partial(soft_in_batch, softness=temperature, scoring=Scoring.of(loss, config))
    return lambda outputs, taught, _: soft_cross_entropy(outputs, taught, temperature)


class Teacher:
    """A trained network that is asked about every row; whole on each rank, never changed.

    Args:
        network: in evaluation mode.
        lesson: what is learned of its answers.
        scale, shift: bring its outputs into the student's units (a regression is standardised by its own data set).
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        config: DistillConfig,
        *,
        lesson: Lesson,
        precision: Precision,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self._network = network.to(device).eval().requires_grad_(requires_grad=False)
        self._config, self._precision = config, precision
        self._scale, self._shift = scale, shift
        self._lesson = lesson
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
        """The loss against the labels and that against the teacher, summed over rows, by the weight of each. Of
        rows that are pairs a collective.

        Args:
            targets: of the rows; they say which tokens are asked about, and how much a row counts.
            features: as the teacher takes them.
        """
        own = self._lesson(outputs, self._outputs(features), targets)
        answers = (1 - self._config.weight) * loss + self._config.weight * own
        return answers + self.hidden.loss(features) if self.hidden else answers

    @torch.no_grad()
    def _outputs(self, features: torch.Tensor) -> torch.Tensor:
        with self._precision.autocast():
            return self._network(features).float() * self._scale + self._shift
