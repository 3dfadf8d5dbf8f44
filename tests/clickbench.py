"""Clicks as a shop would have them, from latent tastes: who clicked what, when items are popular to different degrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from tests.workbench import parquet_bytes, upload

GENRES = 6


def clicks(num_rows: int = 600, num_users: int = 40, num_items: int = 60, seed: int = 0) -> pd.DataFrame:
    """Columns user, age, item, genre, price, times. Each user likes two genres; a fifth of the clicks are anything."""
    rng = np.random.default_rng(seed)
    genre = rng.integers(0, GENRES, num_items)
    popularity = rng.pareto(1.5, num_items) + 0.2
    likes = np.stack([rng.choice(GENRES, 2, replace=False) for _ in range(num_users)])
    user = rng.integers(0, num_users, num_rows)
    rows = []
    for one in user:
        wanted = np.isin(genre, likes[one]) if rng.random() < 0.8 else np.ones(num_items, dtype=bool)
        share = np.where(wanted, popularity, 0.0)
        rows.append(rng.choice(num_items, p=share / share.sum()))
    item = np.array(rows)
    return pd.DataFrame(
        {
            "user": [f"u{one}" for one in user],
            "age": (20 + 5 * likes[user, 0] + rng.normal(size=num_rows)).round(1),
            "item": [f"i{one:03d}" for one in item],
            "genre": [f"g{genre[one]}" for one in item],
            "price": np.round(popularity[item] * 10, 2),
            "times": rng.integers(1, 4, num_rows).astype(float),
        }
    )


def click_config(**changes: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate(
        {
            "task": "retrieval",
            "target": "item",
            "features": ["user", "age", "genre", "price"],
            "items": ["genre", "price"],
            "columns": {"user": {"type": "category"}, "genre": {"type": "category"}},
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
            **changes,
        }
    )


def click_dataset(catalog: Catalog, frame: pd.DataFrame | None = None, **changes: Any) -> ArtifactRef:
    folder = upload(catalog.store, {"clicks.parquet": parquet_bytes(clicks() if frame is None else frame)})
    return preprocess(catalog, snapshot(catalog, folder, Origin()).ref, click_config(**changes), Origin()).ref
