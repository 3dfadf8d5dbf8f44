"""Texts to classify, and a folder as `transformers` writes it: a real architecture, small, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from tests.workbench import parquet_bytes, upload

NOISE = [
    "the",
    "a",
    "of",
    "to",
    "it",
    "is",
    "was",
    "and",
    "very",
    "quite",
    "this",
    "that",
    "thing",
    "film",
    "food",
    "place",
    "day",
]
MOODS = {
    "bad": ["awful", "dull", "poor", "bland"],
    "good": ["lovely", "great", "fine", "fresh"],
    "odd": ["weird", "queer"],
}
BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip


def reviews(num_rows: int = 240, seed: int = 0) -> pd.DataFrame:
    """Texts of 3 to 20 words: columns text, mood; a single word in each tells its mood."""
    rng = np.random.default_rng(seed)
    moods = rng.choice(list(MOODS), num_rows)
    texts = []
    for mood in moods:
        words = list(rng.choice(NOISE, rng.integers(2, 20)))
        words.insert(int(rng.integers(0, len(words))), str(rng.choice(MOODS[mood])))
        texts.append(" ".join(words))
    return pd.DataFrame({"text": texts, "mood": moods})


def tokenizer_folder(folder: Path) -> Path:
    """A tokenizer and its network's settings, saved as such folders are: with padding and cutting off that must not stay."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NOISE, *(word for mood in MOODS.values() for word in mood)]
    words += [
        f"{sign}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for sign in ("", "##") if letter != "a" or sign
    ]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(9)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "model_max_length": 24}))
    (folder / "config.json").write_text(json.dumps({**BERT, "vocab_size": len(words)}))
    return folder


def network_folder(folder: Path, seed: int = 7) -> Path:
    """A tiny BERT with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    settings = json.loads((tokenizer_folder(folder) / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BertModel(BertConfig(**settings))
    network.save_pretrained(folder)
    return folder


def text_config(source: str, **text: Any) -> PreprocessConfig:
    """Reviews, read by the network in that folder."""
    return PreprocessConfig.model_validate(
        {
            "target": "mood",
            "features": ["text"],
            "columns": {"text": {"type": "text"}},
            "transform": {"text": {"source": source, **text}},
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        }
    )


def text_dataset(catalog: Catalog, config: PreprocessConfig, frame: pd.DataFrame | None = None) -> ArtifactRef:
    folder = upload(catalog.store, {"reviews.parquet": parquet_bytes(reviews() if frame is None else frame)})
    return preprocess(catalog, snapshot(catalog, folder, Origin()).ref, config, Origin()).ref


def quick_text_model(catalog: Catalog, dataset_ref: ArtifactRef, source: Path, epochs: int = 25) -> ArtifactRef:
    """A model artifact as training publishes it, of the network in a folder, after some steps in this process."""
    import torch

    from modelyard.models.build import save_model
    from modelyard.models.config import HuggingFaceConfig, ModelSpec
    from modelyard.models.transformer import load_pretrained

    def build(attempt: Attempt) -> None:
        folder = attempt.scratch / "dataset"
        dataset = Dataset.fetch(catalog, dataset_ref, folder, ["train"])
        config = HuggingFaceConfig(
            kind="huggingface",
            auto_class="AutoModelForSequenceClassification",
            config=json.loads((source / "config.json").read_text()),
        )
        num_classes = len(dataset.target.classes)
        features, targets = map(torch.from_numpy, dataset.load("train"))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network, _ = load_pretrained(config, num_classes, source)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
            for _ in range(epochs):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(features), targets).backward()
                optimizer.step()
        spec = ModelSpec(model=config, input_width=dataset.transform.width, output_width=num_classes)
        for name in save_model(spec, network.state_dict(), attempt.scratch):
            attempt.add(name, attempt.scratch / name)
        for name in (TRANSFORM_FILE, TARGET_FILE):
            attempt.add(name, folder / name)

    work = Work(kind="model", config={"epochs": epochs}, inputs={"dataset": dataset_ref}, code_version="test")
    return catalog.produce(work, build, Origin()).ref


def pairs(num_rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Texts with others that share some of their words: columns text, other, likeness (the share of common words)."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        words, more = (list(rng.choice(NOISE, 8)) for _ in range(2))
        kept = int(rng.integers(0, 9))
        rows.append((" ".join(words), " ".join(words[:kept] + more[kept:]), kept / 8))
    return pd.DataFrame(rows, columns=["text", "other", "likeness"])


def pair_config(source: str, similarity: str = "likeness") -> PreprocessConfig:
    """Pairs, for a network that makes vectors."""
    return PreprocessConfig.model_validate(
        {
            "task": "embedding",
            "target": "other",
            "similarity": similarity,
            "features": ["text"],
            "columns": {"text": {"type": "text"}},
            "transform": {"text": {"source": source}},
            "split": {"train": 0.2, "validation": 0.2, "test": 0.6},
        }
    )


def sentence_folder(folder: Path) -> Path:
    """A tiny network with what sentence-transformers writes beside one: mean pooling, vectors of length 1."""
    network_folder(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": f"{at}_{kind}" if at else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": BERT["hidden_size"],
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder
