"""Texts with spans to find, made up: two words in a row of one mood are one entity, and nothing else tells."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from tests.textbench import MOODS, NOISE
from tests.workbench import upload

SpanList = list[dict[str, Any]]


def tagged_words(num_rows: int = 240, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Words and their IOB2 tags."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(num_rows):
        words, tags = list[str](), list[str]()
        for _ in range(int(rng.integers(1, 4))):
            noise = [str(word) for word in rng.choice(NOISE, rng.integers(1, 4))]
            mood = str(rng.choice(list(MOODS)))
            entity = [str(word) for word in rng.choice(MOODS[mood], rng.integers(1, 3))]
            words += [*noise, *entity]
            tags += ["O"] * len(noise) + [f"B-{mood}"] + [f"I-{mood}"] * (len(entity) - 1)
        rows.append((words, tags))
    return rows


def spans_of(words: list[str], tags: list[str]) -> tuple[str, SpanList]:
    """The same as a text with spans, by a way of its own: characters are labelled one by one."""
    text, spans, begin = " ".join(words), SpanList(), 0
    for word, tag in zip(words, tags, strict=True):
        end = begin + len(word)
        if tag.startswith("B-"):
            spans.append({"start": begin, "end": end, "label": tag[2:]})
        elif tag.startswith("I-"):
            spans[-1]["end"] = end
        begin = end + 1
    return text, spans


def spans_jsonl(num_rows: int = 240, seed: int = 0) -> bytes:
    """Rows of ``text``, ``spans`` and ``source``, in turns of two."""
    rows = enumerate(spans_of(*row) for row in tagged_words(num_rows, seed))
    told = ({"text": text, "spans": spans, "source": ("web", "mail")[at % 2]} for at, (text, spans) in rows)
    return "".join(json.dumps(one) + "\n" for one in told).encode()


def tag_config(source: str, **more: Any) -> PreprocessConfig:
    """Spans in texts, read by the network in that folder."""
    tree: dict[str, Any] = {
        "task": "token_classification",
        "target": "spans",
        "features": ["text"],
        "columns": {"text": {"type": "text"}},
        "transform": {"text": {"source": source}},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    }
    return PreprocessConfig.model_validate(tree | more)


def tag_dataset(catalog: Catalog, config: PreprocessConfig, files: dict[str, bytes] | None = None) -> ArtifactRef:
    folder = upload(catalog.store, files or {"rows.jsonl": spans_jsonl()})
    return preprocess(catalog, snapshot(catalog, folder, Origin()).ref, config, Origin()).ref


def as_frame(rows: list[tuple[Any, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["text", "spans"])
