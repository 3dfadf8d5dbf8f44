"""What a student whose answers are vectors learns from its teacher's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from modelyard.train.contrast import Peers, Scoring
from modelyard.train.distillation import likeness_error, soft_in_batch

OWN_WIDTH, ITS_WIDTH = 3, 5  # a teacher's vectors may be wider


def answers(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A student's, its teacher's, and targets: item, logarithm of its frequency, weight."""
    draw = torch.Generator().manual_seed(2)
    own, its = (torch.randn(rows, 2, width, generator=draw, dtype=torch.float64) for width in (OWN_WIDTH, ITS_WIDTH))
    weights = torch.arange(rows) % 3
    return own, its, torch.stack([torch.arange(rows) % 4, -weights - 1.0, weights], dim=1).double()


def test_it_learns_how_likely_its_teacher_takes_each_item_of_the_batch():
    """T^2 times the divergence of the softened probabilities, which the loss on labels would have, rows by their weights,
    against scipy, and its gradient on both sides of a pair; cosines or dot products; 0 where they agree, in whatever vectors."""
    own, its, targets = answers(6)

    def probabilities(outputs: torch.Tensor, *, cosine: bool, correct: bool) -> np.ndarray:
        sides = outputs.numpy() / (np.linalg.norm(outputs, axis=-1, keepdims=True) if cosine else 1)
        scores = sides[:, 0] @ sides[:, 1].T / 0.5 - (targets[:, 1].numpy() if correct else 0)
        return np.exp(log_softmax(scores / 3, axis=1))

    for cosine, correct in [(False, True), (True, False)]:
        soft, wanted = (probabilities(one, cosine=cosine, correct=correct) for one in (own, its))
        expected = 9 * (rel_entr(wanted, soft).sum(1) * targets[:, 2].numpy()).sum()
        scoring = Scoring(peers=Peers(), temperature=0.5, cosine=cosine, correct_popularity=correct)
        found = soft_in_batch(own, its, targets, softness=3.0, scoring=scoring)
        assert float(found) == pytest.approx(expected)
        learned = partial(soft_in_batch, taught=its, targets=targets, softness=3.0, scoring=scoring)
        assert torch.autograd.gradcheck(learned, own.clone().requires_grad_())
        turned = torch.linalg.qr(torch.randn(OWN_WIDTH, OWN_WIDTH, dtype=torch.float64)).Q
        assert float(soft_in_batch(own, own @ turned, targets, softness=3.0, scoring=scoring)) == pytest.approx(0)


def test_it_learns_its_teachers_cosines_where_likenesses_are_given():
    """The squared difference, of a row the mean over all partners of the batch, against NumPy; 0 where they agree."""
    own, its, targets = answers(6)

    def cosines(outputs: torch.Tensor) -> np.ndarray:
        sides = outputs.numpy() / np.linalg.norm(outputs, axis=-1, keepdims=True)
        return sides[:, 0] @ sides[:, 1].T

    expected = ((cosines(own) - cosines(its)) ** 2).mean(1).sum()
    assert float(likeness_error(own, its, targets, peers=Peers())) == pytest.approx(expected)
    assert float(likeness_error(own, own * 2, targets, peers=Peers())) == pytest.approx(0)
