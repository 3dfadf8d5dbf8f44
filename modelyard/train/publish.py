"""A finished training as a model artifact.

model.json, model.safetensors    the network and its weights, above a bound in several files (`modelyard.models.weights`)
transform.json, target.json      what it takes and what its outputs mean
history.json                     every validation
of a network of tokens also: tokenizer.json, config.json, tokenizer_config.json (so that `transformers` loads the folder),
and of a language model samples.md, texts it has continued
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import NotFound
from modelyard.models.build import load_model, model_written
from modelyard.models.config import GptConfig, HuggingFaceConfig, ModelConfig, ModelSpec
from modelyard.models.generate import continued
from modelyard.models.hugging import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    config_json,
    text_tokenizer_json,
    tokenizer_config_json,
    transformer_config_json,
)
from modelyard.models.weights import Held, Source
from modelyard.task_kinds import Target, headline_of, task_kind
from modelyard.token_data import TOKENS_FOLDER
from modelyard.train.adapters import merge_
from modelyard.train.assembly import RankSpec, starting_network
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.config import TrainConfig
from modelyard.train.pretrained_network import vector_target
from modelyard.train.progress import Progress
from modelyard.train.snapshots import PublishedWeights
from modelyard.train.stage import HISTORY_FILE, SAMPLES_FILE
from modelyard.train.starting import read_transform
from modelyard.transform import TextTransform
from modelyard.transform.tokens import END, TOKENIZER_FILE, TokenTransform

NUM_SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 3, 24, 64
# Of weights. Each new token reads all of them, from the disk where memory does not hold them: some seconds each by then.
SAMPLED_BYTES = 40 * 10**9
UNSAMPLED = (
    "No samples: the weights take {:.1f} GB. Above {:.1f} GB none are made: each new token would read all of them.\n"
)


def publish(
    catalog: Catalog,
    attempt: Attempt,
    told: RankSpec,
    network: ModelConfig,
    *,
    sampled_bytes: int = SAMPLED_BYTES,
) -> None:
    """Fill an attempt with the best checkpoint's weights, and what is needed to use them. Of a large network one file's weights
    are in memory at a time; of one that was trained in part all of them, as each rank had them.

    Args:
        sampled_bytes: a language model with more of weights is published without samples, and says so.

    Raises:
        NotFound: the best checkpoint is gone.
    """
    dataset, config = told.dataset, told.config
    progress, trained = _best_weights(catalog, attempt.scratch, config, told.checkpoints)
    weights: Source = trained
    transform, target = catalog.read(dataset, TRANSFORM_FILE), catalog.read(dataset, TARGET_FILE)
    fitted, schema = read_transform(transform), Target.model_validate_json(target)
    schema = vector_target(network, schema)
    kind = task_kind(schema.task)
    spec = ModelSpec(model=network, input_width=fitted.width, output_width=kind.output_width(schema))
    if config.init.trains_a_part:
        attempt.facts["trained_parameters"] = _num_numbers(trained)
        # As ranks began: what did not move is not in the checkpoint.
        began = starting_network(told, catalog, fitted.width, spec.output_width, attempt.scratch / "began")
        weights = Held(merge_(began.network, trained.read(trained.described)))
    add_network(attempt, spec, weights, config.max_shard_bytes)
    attempt.add_bytes(TRANSFORM_FILE, transform)
    attempt.add_bytes(TARGET_FILE, target if not schema.width else schema.model_dump_json().encode())
    attempt.add_json(HISTORY_FILE, progress.validations)
    if isinstance(fitted, TokenTransform):
        size = sum(tensor.nbytes for tensor in weights.described.values())
        samples = UNSAMPLED.format(size / 1e9, sampled_bytes / 1e9) if size > sampled_bytes else ""
        _add_language_files(catalog, attempt, dataset, spec, fitted, samples)
    if isinstance(fitted, TextTransform) and isinstance(spec.network, HuggingFaceConfig):
        add_library_files(attempt, spec, fitted, schema)
    attempt.facts.update(_facts(progress, config.stop.metric or headline_of(schema), weights))


def add_network(attempt: Attempt, spec: ModelSpec, weights: Source, max_shard_bytes: int) -> None:
    """The network and its weights, each file sent before the next one's weights are read."""
    for name in model_written(spec, weights, attempt.scratch, max_shard_bytes):
        attempt.add(name, attempt.scratch / name)


def add_library_files(attempt: Attempt, spec: ModelSpec, transform: TextTransform, target: Target) -> None:
    """What `transformers` needs besides to load the folder."""
    attempt.add_bytes(TOKENIZER_FILE, transform.tokenizer.encode())
    attempt.add_json(CONFIG_FILE, transformer_config_json(spec, target))
    attempt.add_json(TOKENIZER_CONFIG_FILE, text_tokenizer_json(transform))


def _best_weights(
    catalog: Catalog, scratch: Path, config: TrainConfig, checkpoints: str
) -> tuple[Progress, PublishedWeights]:
    shelf = Checkpoints(catalog.store, checkpoints, config.checkpoint)
    pointers = shelf.pointers()
    progress = Progress.from_json(pointers[0].progress)
    best = progress.best_validation
    kept = next((pointer for pointer in pointers if pointer.step == best["step"] and pointer.score), None)
    if kept is None:
        raise NotFound(
            f"{checkpoints}: the best checkpoint (step {best['step']:g}) is gone; delete that folder and train anew"
        )
    shelf.fetch(kept, scratch / "checkpoint")
    return progress, PublishedWeights(scratch / "checkpoint", progress.shapes)


def _num_numbers(weights: Source) -> int:
    return sum(tensor.numel() for tensor in weights.described.values())


def _facts(progress: Progress, headline: str, weights: Source) -> dict[str, object]:
    best = progress.best_validation
    return {
        "metrics": {name: value for name, value in best.items() if name not in {"step", "epoch"}},
        "headline": headline,
        "best_epoch": best["epoch"],
        "best_step": int(best["step"]),
        "epochs": progress.validations[-1]["epoch"],
        "steps": progress.step,
        "stopped_by": progress.stopped_by,
        "parameters": _num_numbers(weights),
    }


def _add_language_files(
    catalog: Catalog, attempt: Attempt, dataset: ArtifactRef, spec: ModelSpec, transform: TokenTransform, samples: str
) -> None:
    """``samples``: what to say instead of them; empty: they are made."""
    tokenizer = catalog.read(dataset, TOKENIZER_FILE)
    attempt.add_bytes(TOKENIZER_FILE, tokenizer)
    if isinstance(spec.model, GptConfig):
        attempt.add_json(CONFIG_FILE, config_json(spec, transform.end))
        attempt.add_json(TOKENIZER_CONFIG_FILE, tokenizer_config_json(transform.sequence_length, END))
    samples = samples or _samples(catalog, attempt.scratch, dataset, tokenizer, transform)
    attempt.add_bytes(SAMPLES_FILE, samples.encode())


def _samples(catalog: Catalog, folder: Path, dataset: ArtifactRef, tokenizer: bytes, transform: TokenTransform) -> str:
    """Beginnings from the validation split as the trained network goes on with them, as Markdown."""
    from tokenizers import Tokenizer

    reader = Tokenizer.from_buffer(tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: the same weights give the same samples
    try:
        texts = continued(
            load_model(folder), _prompts(catalog, folder, dataset), new_tokens=NEW_TOKENS, end=transform.end
        )
    finally:
        torch.set_num_threads(threads)
    parts = []
    for tokens in texts:
        begun, made = (reader.decode(part) for part in (tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS:]))
        parts.append(f"**given**\n\n{_quoted(begun)}\n\n**continued**\n\n{_quoted(made)}\n")
    return "\n---\n\n".join(parts)


def _prompts(catalog: Catalog, folder: Path, dataset: ArtifactRef) -> list[list[int]]:
    """The first tokens of a few validation sequences, evenly spread."""
    first = f"{TOKENS_FOLDER}/validation/000000.npy"
    catalog.fetch(dataset, folder / "prompts", [first])
    rows = np.load(folder / "prompts" / first, mmap_mode="r")
    whole = max(len(rows) - 1, 1)  # the last one may be filled up
    chosen = np.unique(np.linspace(0, whole - 1, min(NUM_SAMPLES, whole)).astype(int))
    return [rows[number, : min(PROMPT_TOKENS, rows.shape[1] - 1)].tolist() for number in chosen]


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
