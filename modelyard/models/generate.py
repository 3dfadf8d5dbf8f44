"""Texts continued by a language model, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def continued(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    end: int,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> list[list[int]]:
    """Each prompt (some tokens) with up to ``new_tokens`` more, drawn from the ``top_k`` likeliest; ends at ``end``.

    The same network, prompts and seed give the same tokens on one machine type.
    """
    draw = torch.Generator().manual_seed(seed)
    return [_continued(network, list(prompt), new_tokens, end, temperature, top_k, draw) for prompt in prompts]


def _continued(
    network: nn.Module,
    tokens: list[int],
    new_tokens: int,
    end: int,
    temperature: float,
    top_k: int,
    draw: torch.Generator,
) -> list[int]:
    for _ in range(new_tokens):
        scores = network(torch.tensor([tokens]))[0, -1].float() / temperature
        best, which = scores.topk(min(top_k, len(scores)))
        tokens.append(int(which[torch.multinomial(best.softmax(0), 1, generator=draw)]))
        if tokens[-1] == end:
            break
    return tokens
