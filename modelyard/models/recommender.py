"""Two towers: a query and an item become vectors, and their dot product says how well they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from modelyard.models.config import MlpConfig, RecommenderConfig
from modelyard.models.mlp import Mlp

INITIAL_DEVIATION = 0.05


class Tower(nn.Module):
    """Inputs (n, width), each a number or the row of a table -> vectors (n, output_width).

    Args:
        tables: for each input the rows of its table; 0: it is a number.
    """

    def __init__(self, config: RecommenderConfig, tables: Sequence[int], output_width: int) -> None:
        super().__init__()
        self._named = [at for at, rows in enumerate(tables) if rows]
        self._numbers = [at for at, rows in enumerate(tables) if not rows]
        self.tables = nn.ModuleList(
            nn.Embedding(tables[at], config.embedding_width, sparse=config.sparse) for at in self._named
        )
        for table in self.tables:
            nn.init.normal_(cast("nn.Embedding", table).weight, std=INITIAL_DEVIATION)
        width = len(self._named) * config.embedding_width + len(self._numbers)
        shape = MlpConfig(hidden_sizes=config.hidden_sizes, dropout=config.dropout, activation=config.activation)
        self.head = Mlp(shape, width, output_width)
        self._normalise = config.normalise

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        parts = [inputs[:, self._numbers]] if self._numbers else []
        for at, module in zip(self._named, self.tables, strict=True):
            table = cast("nn.Embedding", module)
            parts.append(table(inputs[:, at].long().clamp(0, table.num_embeddings - 1)))
        vectors = self.head(torch.cat(parts, dim=1))
        return nn.functional.normalize(vectors, dim=-1) if self._normalise else vectors


class Recommender(nn.Module):
    """What is served: queries (n, query inputs) -> vectors (n, k). In training rows hold both sides, (n, query inputs + item
    inputs) -> (n, 2, k), the query's vector before the item's."""

    def __init__(self, config: RecommenderConfig, output_width: int) -> None:
        super().__init__()
        self.queries = Tower(config, config.query_tables, output_width)
        self.items = Tower(config, config.item_tables, output_width)
        self._query_width = len(config.query_tables)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.shape[1] == self._query_width:
            return self.queries(rows)
        own, other = rows[:, : self._query_width], rows[:, self._query_width :]
        return torch.stack([self.queries(own), self.items(other)], dim=1)
