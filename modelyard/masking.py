"""Which tokens of a text are hidden, for masked language modelling.

After BERT (Devlin et al. 2018, arXiv 1810.04805, section 3.1): of a text's tokens 15 % are to be foretold, at least one; of
those 80 % become the mask, 10 % a random token, and 10 % stay what they are. Marks of beginning and end are never chosen.

Draws come from a counter (Philox; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by seed, epoch
and number of the row. So they do not depend on ranks, batches, or on what was drawn before, and a resumed training hides the
same tokens.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.token_labels import NO_TAG

TRAINING, FIXED = 0, 1  # streams of draws: of epochs, and of rows that are hidden alike each time


class MaskingConfig(Frozen):
    """How tokens are hidden.

    Attributes:
        fraction: of a text's tokens that are to be foretold.
        mask, random: of those, the share that becomes the mask, and that becomes a random token; the rest stays.
    """

    fraction: float = Field(0.15, gt=0, lt=1)
    mask: float = Field(0.8, ge=0, le=1)
    random: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> MaskingConfig:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(
                f"mask {self.mask:g} and random {self.random:g} are shares of the hidden tokens: 1 at most together"
            )
        return self


class Masker:
    """Hides tokens of rows.

    Args:
        mask: number of the token that stands for a hidden one.
        vocabulary: how many tokens there are.
        marks: numbers of tokens that are never hidden.
    """

    def __init__(self, config: MaskingConfig, *, mask: int, vocabulary: int, marks: frozenset[int], seed: int) -> None:
        self._config, self._mask, self._vocabulary, self._seed = config, mask, vocabulary, seed
        self._marks = np.array(sorted(marks), dtype=np.int64)

    def hide(self, tokens: np.ndarray, row: int, epoch: int, stream: int = TRAINING) -> tuple[np.ndarray, np.ndarray]:
        """A row's tokens (t,) as the network sees them, and what it is to foretell (t,), `NO_TAG` where nothing.

        A row without anything but marks has nothing to foretell.
        """
        counter = np.array([0, 0, row, epoch], dtype=np.uint64)
        key = np.array([self._seed, stream], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(counter=counter, key=key))
        draws, replacements = rng.random((2, len(tokens))), rng.integers(0, self._vocabulary, len(tokens))
        seen, targets = tokens.astype(np.int64), np.full(len(tokens), NO_TAG, dtype=np.int64)
        free = np.flatnonzero(~np.isin(seen, self._marks))
        if not len(free):
            return seen, targets
        count = max(1, round(self._config.fraction * len(free)))
        chosen = free[np.argsort(draws[0, free], kind="stable")[:count]]
        targets[chosen] = seen[chosen]
        becomes_mask = draws[1, chosen] < self._config.mask
        becomes_random = ~becomes_mask & (draws[1, chosen] < self._config.mask + self._config.random)
        seen[chosen[becomes_mask]] = self._mask
        seen[chosen[becomes_random]] = replacements[chosen[becomes_random]]
        return seen, targets
