"""A masked language model under judgement: how well it foretells tokens that are hidden in the texts of the test split.

The same tokens are hidden for every model: 15 % of each text's, drawn by `evaluate.seed`, as `modelyard.masking` hides them;
a text that is longer than the network reads is cut into pieces, none of it is left out. ``loss`` is the cross-entropy of a
hidden token in nats and ``perplexity`` its exponential: the pseudo-perplexity of Salazar et al. (2020, arXiv
1910.14659), but with many tokens hidden at a time where theirs hides each one alone. Sums are kept text by text, so that intervals are those of drawing texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.errors import DataError
from modelyard.evaluate.language import SCORES_AT_A_TIME, Read
from modelyard.masking import FIXED, Masker, MaskingConfig
from modelyard.models.config import MODEL_FILE
from modelyard.models.weights import fetch_weights
from modelyard.task_kinds import NO_TOKEN, Target
from modelyard.transform import TextTransform, portions, read_row_transform
from modelyard.transform.text import padded

TEXTS_AT_A_TIME = 256


def read_masked(
    catalog: Catalog, dataset_ref: ArtifactRef, roles: Mapping[str, ArtifactRef], seed: int, scratch: Path
) -> dict[str, Read]:
    """What each model makes of the hidden tokens of every text of the test split.

    Raises:
        DataError: a model of another task or with another tokenizer, or an empty split.
    """
    dataset = Dataset.fetch(catalog, dataset_ref, scratch / "dataset", ["test"])
    if not dataset.num_rows("test"):
        raise DataError("the test split is empty")
    return {role: _read(catalog, ref, role, dataset, seed, scratch / role) for role, ref in roles.items()}


def _read(catalog: Catalog, ref: ArtifactRef, role: str, dataset: Dataset, seed: int, folder: Path) -> Read:
    from modelyard.models.build import load_model  # torch: seconds

    transform = dataset.transform
    assert isinstance(transform, TextTransform)
    _require_fit(catalog, ref, role, dataset.target, transform)
    fetch_weights(catalog, ref, folder, [MODEL_FILE])
    network, found, first = load_model(folder), Read(), 0
    masker = _masker(transform, seed)
    for frame in dataset.frames("test", TEXTS_AT_A_TIME):
        pieces = transform.pieces(list(frame[transform.column]))
        owners = np.repeat(np.arange(len(pieces)), [len(some) for some in pieces])
        hidden = [masker.hide(np.array(piece), first + at, 0, FIXED) for at, piece in enumerate(chain(*pieces))]
        first += len(hidden)
        rows = padded([seen for seen, _ in hidden])
        targets = np.full(rows.shape, NO_TOKEN, dtype=np.int64)
        for at, (_, wanted) in enumerate(hidden):
            targets[at, : len(wanted)] = wanted
        nats = _nats(network, rows, targets, transform.vocabulary)
        sums = np.zeros((len(pieces), 3))
        np.add.at(sums, owners, np.column_stack([nats, (targets != NO_TOKEN).sum(axis=1), np.zeros(len(rows))]))
        found.add(sums)
    return found


def _masker(transform: TextTransform, seed: int) -> Masker:
    assert transform.mask is not None, "preprocessing asked for it"
    return Masker(
        MaskingConfig(), mask=transform.mask, vocabulary=transform.vocabulary, marks=transform.marks, seed=seed
    )


def _require_fit(catalog: Catalog, ref: ArtifactRef, role: str, target: Target, transform: TextTransform) -> None:
    own = Target.model_validate_json(catalog.read(ref, TARGET_FILE))
    if own.task != target.task:
        raise DataError(f"the {role} {ref} cannot be judged on this data set: it is for {own.task}")
    reader = read_row_transform(catalog.read(ref, TRANSFORM_FILE))
    if not isinstance(reader, TextTransform) or reader.tokenizer_sha256 != transform.tokenizer_sha256:
        raise DataError(f"the {role} {ref} cannot be judged on this data set: it has another tokenizer")
    if reader.max_length < transform.max_length:
        raise DataError(
            f"the {role} {ref} cannot be judged on this data set: it was trained on rows of {reader.max_length} tokens at"
            f" most, these have up to {transform.max_length}"
        )


def _nats(network: Any, rows: np.ndarray, targets: np.ndarray, vocabulary: int) -> np.ndarray:
    """What the hidden tokens of each row cost together, (n,)."""
    import torch
    from torch.nn import functional

    found = np.zeros(len(rows))
    for chosen, some in portions(rows, max(1, SCORES_AT_A_TIME // vocabulary)):
        wanted = torch.from_numpy(targets[chosen, : some.shape[1]])
        with torch.inference_mode():
            scores = network(torch.from_numpy(some)).float()
            lost = functional.cross_entropy(
                scores.flatten(0, 1), wanted.flatten(), ignore_index=NO_TOKEN, reduction="none"
            )
        found[chosen] = lost.view(wanted.shape).double().sum(dim=1).numpy()
    return found
