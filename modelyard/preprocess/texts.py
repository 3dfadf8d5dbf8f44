"""The transform of a column of texts: the tokenizer of the network that will read them."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

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
        return _of(folder, config.text_column, config.transform.text)


def _of(folder: Folder, column: str, wanted: TextConfig) -> TextTransform:
    body = plain_tokenizer(folder.read(TOKENIZER_FILE), f"{FIELD}: {folder.address}/{TOKENIZER_FILE}")
    longest = own_length(folder)
    if wanted.max_length and wanted.max_length > longest:
        raise ConfigError(
            "preprocess.transform.text.max_length", f"{wanted.max_length} is more than the {longest} tokens that"
            f" {folder.address} was made for"
        )  # fmt: skip
    tokenizer = Tokenizer.from_str(body)
    return TextTransform(
        column=column,
        max_length=wanted.max_length or min(longest, DEFAULT_LENGTH),
        padding=wanted.padding,
        pad=_pad(tokenizer, folder.read_json(TOKENIZER_CONFIG_FILE, {}), folder.read_json(CONFIG_FILE, {})),
        vocabulary=tokenizer.get_vocab_size(with_added_tokens=True),
        tokenizer=body,
    )


def _pad(tokenizer: Tokenizer, settings: dict[str, Any], network: dict[str, Any]) -> int:
    """The token that stands for none; where nobody says, the first one will do, since nothing looks at it."""
    named = settings.get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(named) if named else None
    return found if found is not None else int(network.get("pad_token_id") or 0)
