"""A decoder-only transformer in the form that has become usual, with the weight names of Hugging Face's Llama.

Rotary positions (Su et al. 2021, arXiv 2104.09864), RMSNorm before each part (Zhang and Sennrich 2019, arXiv
1910.07467), SwiGLU (Shazeer 2020, arXiv 2002.05202), grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245),
no biases. Positions have no weights, so a trained network takes longer sequences than it was trained on.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from modelyard.models.config import GptConfig

INIT_DEVIATION = 0.02


class Gpt(nn.Module):
    """Tokens (n, t) int64 -> raw scores of the next token (n, t, vocabulary).

    Under ``torch.device("meta")`` nothing is allocated; `reset_` gives such a network its first weights after
    ``to_empty``.
    """

    reads_tokens = True

    def __init__(self, config: GptConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        on_meta = torch.get_default_device().type == "meta"
        with torch.device("meta"):  # so that no weight is drawn twice
            self.model = Decoder(config, vocabulary)
            # Tied, there is no second matrix: the embedding is read twice.
            self.lm_head = None if config.tie_embeddings else nn.Linear(config.width, vocabulary, bias=False)
        if not on_meta:
            self.to_empty(device=torch.get_default_device())
            self.reset_()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.model(tokens)
        if self.lm_head is None:
            return linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)

    @torch.no_grad()
    def reset_(self) -> None:
        """Draw all weights from torch's global generator: N(0, 0.02^2), smaller where a block adds to the residual
        stream, so that its variance does not grow with depth (Radford et al. 2019)."""
        for name, weight in self.named_parameters():
            self.reset_weight_(name, weight)

    @torch.no_grad()
    def reset_weight_(self, name: str, weight: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """One weight's share of `reset_`: drawn one at a time in the order of names, from one generator, weights are the
        same bits."""
        if weight.ndim == 1:
            nn.init.ones_(weight)
            return
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        deviation = INIT_DEVIATION / math.sqrt(2 * self.config.layers) if adds else INIT_DEVIATION
        nn.init.normal_(weight, std=deviation, generator=generator)


class Decoder(nn.Module):
    """Tokens (n, t) -> hidden states (n, t, width)."""

    def __init__(self, config: GptConfig, vocabulary: int) -> None:
        super().__init__()
        self._head_width, self._theta = config.width // config.heads, config.rope_theta
        self.embed_tokens = nn.Embedding(vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(tokens)
        # Computed anew each time: a buffer would have to be restored after `to_empty`, and this is a thousandth of a step.
        cosines, sines = rotations(tokens.shape[1], self._head_width, self._theta, tokens.device)
        for layer in self.layers:
            hidden = layer(hidden, cosines, sines)
        return self.norm(hidden)


class Block(nn.Module):
    """Attention, then the feed-forward part, each added to what came in."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.dropout(self.self_attn(self.input_layernorm(hidden), cosines, sines))
        return hidden + self.dropout(self.mlp(self.post_attention_layernorm(hidden)))


class Attention(nn.Module):
    """Causal attention; several query heads share a head of keys and values."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self._head_width = config.width // config.heads
        shared = config.num_key_value_heads * self._head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, shared, bias=False)
        self.v_proj = nn.Linear(config.width, shared, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (self._heads(part(hidden)) for part in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys = rotated(queries, cosines, sines), rotated(keys, cosines, sines)
        grouped = keys.shape[1] != queries.shape[1]
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(n, t, heads * width of a head) -> (n, heads, t, width of a head)."""
        return projected.unflatten(-1, (-1, self._head_width)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.num_hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.num_hidden, bias=False)
        self.down_proj = nn.Linear(config.num_hidden, config.width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def rotations(length: int, head_width: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position's angles, each (length, head_width); the second half repeats the first."""
    frequencies = theta ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotated(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Heads (n, heads, t, width) turned by their positions' angles; halves, not neighbours, form the planes."""
    one, two = heads.chunk(2, dim=-1)
    turned = torch.cat((-two, one), dim=-1)
    return heads * cosines.to(heads.dtype) + turned * sines.to(heads.dtype)
