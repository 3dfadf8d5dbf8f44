"""Which tokens are hidden: as BERT hides them, and by nothing but seed, epoch and row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from modelyard.masking import FIXED, Masker, MaskingConfig
from modelyard.metrics import MaskedMetrics
from modelyard.task_kinds import NO_TOKEN
from modelyard.train.masked_rows import MaskedSplit

MASK, VOCABULARY = 4, 1000
MARKS = frozenset({0, 1, 2, 3, MASK})
ROWS = [np.concatenate([[2], np.random.default_rng(at).integers(5, VOCABULARY, 40), [3]]) for at in range(400)]


def masker(seed: int = 0, **changes: float) -> Masker:
    config = MaskingConfig.model_validate(changes)
    return Masker(config, mask=MASK, vocabulary=VOCABULARY, marks=MARKS, seed=seed)


def test_tokens_are_hidden_in_the_shares_of_the_paper():
    """Fifteen of a hundred are to be foretold; of them eighty are the mask, ten another token, ten what they were. Marks are
    left alone, and what nobody asks for stays as it is."""
    hidden = [masker().hide(row, at, 0) for at, row in enumerate(ROWS)]
    seen, targets, rows = np.array([one for one, _ in hidden]), np.array([one for _, one in hidden]), np.array(ROWS)
    asked = targets != NO_TOKEN
    assert (asked.sum(axis=1) == 6).all()  # of 40
    assert (targets[asked] == rows[asked]).all()
    assert (seen[~asked] == rows[~asked]).all()
    assert not asked[:, [0, -1]].any()
    assert np.mean(seen[asked] == MASK) == pytest.approx(0.8, abs=0.02)
    assert np.mean(seen[asked] == rows[asked]) == pytest.approx(0.1, abs=0.02)
    places = asked[:, 1:-1].mean(axis=0)
    assert places.max() < 0.25  # no place is dear to it
    assert places.min() > 0.07


def test_short_texts_have_something_to_foretell():
    """One token at least; of marks alone none."""
    _, targets = masker().hide(np.array([2, 9, 3]), 0, 0)
    assert targets.tolist() == [NO_TOKEN, 9, NO_TOKEN]
    seen, targets = masker().hide(np.array([2, 3]), 0, 0)
    assert (seen.tolist(), targets.tolist()) == ([2, 3], [NO_TOKEN, NO_TOKEN])


def test_what_is_hidden_follows_from_seed_epoch_and_row_alone():
    """Not from the batch, its order, or what was read before; another seed, epoch or stream hides others."""
    split = MaskedSplit([ROWS[:8]], masker(), is_fixed=False)
    whole = split.batch(torch.arange(8))
    for numbers in ([5], [7, 5, 1]):
        some = split.batch(torch.tensor(numbers))
        assert some.features.equal(whole.features[numbers])
        assert some.targets.equal(whole.targets[numbers])
    assert not split.batch(torch.arange(8) + 8).targets.equal(whole.targets)  # the next epoch
    assert not MaskedSplit([ROWS[:8]], masker(1), is_fixed=False).batch(torch.arange(8)).targets.equal(whole.targets)
    fixed = MaskedSplit([ROWS[:8]], masker(), is_fixed=True)
    assert not fixed.batch(torch.arange(8)).targets.equal(whole.targets)
    assert not fixed.varies_by_epoch
    assert not np.array_equal(masker().hide(ROWS[0], 0, 0)[1], masker().hide(ROWS[0], 0, 0, FIXED)[1])


def test_shares_that_do_not_fit_are_refused():
    """Mask and random tokens are parts of the hidden ones."""
    with pytest.raises(ValidationError, match="1 at most together"):
        MaskingConfig(mask=0.8, random=0.3)


def test_perplexity_is_that_of_hidden_tokens():
    """From scores or from losses alike; a network that knows nothing is as unsure as there are tokens."""
    targets = np.array([[NO_TOKEN, 3, NO_TOKEN], [1, NO_TOKEN, NO_TOKEN]])
    metric, same = MaskedMetrics(), MaskedMetrics()
    metric.update(np.zeros((2, 3, 50)), targets)
    same.update(np.where(targets >= 0, np.log(50), 99.0), targets)
    assert metric.compute()["perplexity"] == pytest.approx(50)
    assert same.compute() == pytest.approx(metric.compute())
