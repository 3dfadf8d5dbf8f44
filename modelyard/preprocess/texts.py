"""The transform of a column of texts: the tokenizer of the network that will read them."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Work
from modelyard.datasets import TRANSFORM_FILE
from modelyard.errors import ConfigError
from modelyard.preprocess.config import PreprocessConfig
from modelyard.pretrained import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Folder,
    opened,
    own_length,
    plain_tokenizer,
)
from modelyard.storage import Store
from modelyard.token_labels import Subwords
from modelyard.transform import TextConfig, TextTransform

FIELD = "preprocess.transform.text.source"
DEFAULT_LENGTH = 512  # what attention costs grows with the square


def text_transform(store: Store, config: PreprocessConfig) -> TextTransform | None:
    """The transform of the column of type text; None where there is no such column.

    Raises:
        ConfigError: more tokens than the network can read.
        DataError: the folder has no tokenizer.
    """
    if config.text_column is None:
        return None
    with opened(store, config.transform.text.source, FIELD, weights=False) as folder:
        found = _of(folder, config.text_column, config.transform.text, config.spans.subwords)
        if config.task == "masked_language_modelling" and found.mask is None:
            raise ConfigError(
                FIELD, f"the tokenizer of {folder.address} has no token that stands for a hidden one (mask_token): it is"
                " that of no masked language model"
            )  # fmt: skip
        return found


def kept(catalog: Catalog, transform: TextTransform, origin: Origin) -> ArtifactRef:
    """The transform as an artifact, for who prepares partitions elsewhere: the same one, the same artifact."""
    known = transform.model_dump(mode="json", exclude={"tokenizer"}) | {"tokenizer": transform.tokenizer_sha256}
    work = Work(kind="pretrained", config={"reader": known}, inputs={}, code_version="1")
    body = transform.model_dump(mode="json")
    return catalog.produce(work, lambda attempt: attempt.add_json(TRANSFORM_FILE, body), origin).ref


def _of(folder: Folder, column: str, wanted: TextConfig, subwords: Subwords) -> TextTransform:
    body = plain_tokenizer(folder.read(TOKENIZER_FILE), f"{FIELD}: {folder.address}/{TOKENIZER_FILE}")
    longest = own_length(folder)
    if wanted.max_length and wanted.max_length > longest:
        raise ConfigError(
            "preprocess.transform.text.max_length", f"{wanted.max_length} is more than the {longest} tokens that"
            f" {folder.address} was made for"
        )  # fmt: skip
    tokenizer, settings = Tokenizer.from_str(body), folder.read_json(TOKENIZER_CONFIG_FILE, {})
    return TextTransform(
        column=column,
        max_length=wanted.max_length or min(longest, DEFAULT_LENGTH),
        padding=wanted.padding,
        pad=_pad(tokenizer, settings, folder.read_json(CONFIG_FILE, {})),
        mask=_named(tokenizer, settings, "mask_token"),
        subwords=subwords,
        vocabulary=tokenizer.get_vocab_size(with_added_tokens=True),
        tokenizer=body,
    )


def _pad(tokenizer: Tokenizer, settings: dict[str, Any], network: dict[str, Any]) -> int:
    """The token that stands for none; where nobody says, the first one will do, since nothing looks at it."""
    found = _named(tokenizer, settings, "pad_token")
    return found if found is not None else int(network.get("pad_token_id") or 0)


def _named(tokenizer: Tokenizer, settings: dict[str, Any], key: str) -> int | None:
    """The number of a token that the tokenizer's settings name."""
    name = settings.get(key)
    name = name.get("content") if isinstance(name, dict) else name
    return tokenizer.token_to_id(name) if name else None
