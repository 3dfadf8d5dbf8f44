"""Networks of the library `transformers`: built by its Auto classes, filled from safetensors, fed with one tensor.

A row is the numbers of a text's tokens, and `NO_TOKEN` behind its end. What else such a network wants (which numbers to
compute with, what to look at) follows from that inside of the network, so that every engine and every stage passes on
one tensor. Code that a folder brings along is never executed, and nothing is downloaded.
"""

from __future__ import annotations

import difflib
import os
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from modelyard.errors import ConfigError, DataError, MissingExtra
from modelyard.models.config import HuggingFaceConfig, Pooling

# A network that lacks more of its weights than this is another one than the folder holds; a new head is far smaller.
MAX_FRESH_FRACTION = 0.5
MASKED = "AutoModelForMaskedLM"  # its outputs are tokens, which have no names of classes
SILENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Transformer(nn.Module):
    """Tokens (n, t) int64, below 0 where there is none -> raw outputs (n, k); pairs of texts (n, 2, t) -> (n, 2, k).

    Args:
        network: of `transformers`; takes ``input_ids`` and ``attention_mask``, gives ``logits``, or hidden states where
            they are to be pooled.
        pad: a token's number to compute with where there is none; nothing looks at it.
        pooling, normalise: as `HuggingFaceConfig` has them.
        scores: of tokens, behind which nothing has a meaning: some vocabularies are filled up to a round number; None: all.
    """

    reads_tokens = True

    def __init__(
        self,
        network: nn.Module,
        pad: int,
        pooling: Pooling | Literal[""] = "",
        *,
        normalise: bool = False,
        scores: int | None = None,
    ) -> None:
        super().__init__()
        self._scores = scores
        self.network = network
        self._pad, self._pooling, self._normalise = pad, pooling, normalise

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.ndim == 3:
            outputs = self(tokens.flatten(0, 1))
            return outputs.reshape(len(tokens), 2, outputs.shape[-1])
        if tokens.shape[0] == 0:  # a rank's share of the last batch may be empty, and its gradients are then zeros
            return self(tokens.new_full((1, 1), self._pad))[:0]
        here = tokens >= 0
        answer = self.network(input_ids=tokens.masked_fill(~here, self._pad), attention_mask=here.long())
        wanted = "last_hidden_state" if self._pooling else "logits"
        if wanted not in answer:
            raise ConfigError(
                "train.model.auto_class", f"{type(self.network).__name__} gives no {wanted}; leave it to the task"
            )
        if not self._pooling:
            return answer.logits if self._scores is None else answer.logits[..., : self._scores]
        vectors = pooled(answer.last_hidden_state, here, self._pooling)
        if self.training and answer.get("pooler_output") is not None:
            # What the library would pool by plays no part; ranks that wait for each weight's gradient are sent a zero.
            vectors = vectors + 0.0 * answer.pooler_output.sum()
        return nn.functional.normalize(vectors, dim=-1) if self._normalise else vectors


def pooled(states: torch.Tensor, here: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Vectors of tokens (n, t, width) as one for each text (n, width); ``here`` (n, t) says where a token is.

    As sentence-transformers pools (Reimers and Gurevych 2019, arXiv 1908.10084).
    """
    mask = here.unsqueeze(-1)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(~mask, float("-inf")).amax(dim=1)
    if pooling == "last":
        last = here.long().sum(dim=1, keepdim=True).clamp(min=1) - 1
        return states.gather(1, last.unsqueeze(-1).expand(-1, -1, states.shape[-1])).squeeze(1)
    weights = mask.to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def build_transformer(config: HuggingFaceConfig, output_width: int) -> Transformer:
    """The network with random weights.

    Raises:
        ConfigError: `transformers` has no such class or kind of network, or cannot build it from these keys.
        MissingExtra: `transformers` is not installed.
    """
    settings = library_config(config, output_width)
    try:
        network = _auto_class(config).from_config(settings, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError) as failure:
        raise ConfigError("train.model", f"{config.auto_class} cannot be built: {_first_line(failure)}") from failure
    return _wrapped(network, settings.pad_token_id, config, output_width)


def load_pretrained(config: HuggingFaceConfig, output_width: int, folder: Path) -> tuple[Transformer, list[str]]:
    """The network with the weights of a folder; what the folder lacks is drawn from torch's global generator.

    Args:
        config: whole, as `modelyard.train` makes it of the folder's `config.json`.

    Returns:
        The network, and the names of the weights that are new.

    Raises:
        ConfigError: the folder is of another network.
        DataError: its weights cannot be read.
    """
    try:
        network, report = _auto_class(config).from_pretrained(
            folder,
            config=library_config(config, output_width),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as failure:
        raise DataError(f"{config.source}: its weights cannot be loaded: {_first_line(failure)}") from failure
    fresh = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    weights = dict(network.named_parameters())
    num_fresh = sum(weights[name].numel() for name in fresh if name in weights)
    if num_fresh > MAX_FRESH_FRACTION * sum(weight.numel() for weight in weights.values()):
        raise ConfigError(
            "train.model.source",
            f"{config.source} lacks most of the weights of {type(network).__name__} ({', '.join(fresh[:3])}, ...): it"
            " holds another network than its config.json says, or train.model.config changed its shapes",
        )
    return _wrapped(network.train(), network.config.pad_token_id, config, output_width), fresh


def _wrapped(network: nn.Module, pad: int, config: HuggingFaceConfig, output_width: int) -> Transformer:
    scores = output_width if config.auto_class == MASKED else None
    return Transformer(network, pad, config.pooling, normalise=bool(config.normalise), scores=scores)


def class_name(config: HuggingFaceConfig, output_width: int) -> str:
    """The network's own class, which the Auto class chose."""
    with torch.device("meta"):
        return type(build_transformer(config, output_width).network).__name__


def library_config(config: HuggingFaceConfig, output_width: int) -> Any:
    """The configuration as an object of `transformers`.

    Raises:
        ConfigError: a kind of network that `transformers` does not know.
    """
    keys = dict(config.config)
    kind = keys.pop("model_type")
    known = _library().CONFIG_MAPPING
    if kind not in known:
        close = difflib.get_close_matches(kind, list(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; code that a folder brings along is not executed"
        raise ConfigError("train.model.config.model_type", f"transformers has no {kind!r}{hint}")
    for key in ("auto_map", "architectures", "transformers_version", "id2label", "label2id", "num_labels"):
        keys.pop(key, None)
    ends = {} if config.auto_class == MASKED else {"num_labels": output_width}
    settings = known[kind](**keys, **ends)
    if settings.pad_token_id is None:
        settings.pad_token_id = 0
    settings.use_cache = False  # of earlier tokens, which only texts that are being written need
    return settings


def _auto_class(config: HuggingFaceConfig) -> Any:
    library = _library()
    found = getattr(library, config.auto_class, None)
    if found is None:
        known = [name for name in dir(library) if name.startswith("AutoModel")]
        close = difflib.get_close_matches(config.auto_class, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError("train.model.auto_class", f"transformers has no {config.auto_class}; {hint}")
    return found


def _library() -> ModuleType:
    """`transformers`, kept from the network and from talking.

    Raises:
        MissingExtra: it is not installed.
    """
    if find_spec("transformers") is None:
        raise MissingExtra("transformers", "transformers", "train.model.kind huggingface")
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
