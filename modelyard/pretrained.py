"""Folders as the library `transformers` writes them, wherever they lie: what of them is taken, and what is refused.

Preprocessing reads a tokenizer there, training a network and its weights. What training takes becomes an artifact of its
own (kind ``pretrained``), so that a model says which bytes it began with, whoever moves or changes the folder later.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from modelyard import hub
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work, file_sha256
from modelyard.errors import ConfigError, DataError, NotFound
from modelyard.models.weights import StoredWeights, weight_files
from modelyard.storage import Store

CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer.json", "tokenizer_config.json"
MODULES_FILE, SENTENCE_FILE, POOLING_FILE = "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"
# What says how a network is built and used; weights come besides. No code, no pickles, no pictures.
SETTINGS = (CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "generation_config.json",
            MODULES_FILE, SENTENCE_FILE, POOLING_FILE)  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")
LOCAL, BUCKET = "file://", "s3://"
WANTED_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")


class Folder:
    """One such folder.

    Args:
        field: the preset key that names it, for sentences.

    Raises:
        ConfigError: an address that is none of those that Modelyard reads.
        NotFound: there is nothing.
    """

    def __init__(self, store: Store, address: str, field: str) -> None:
        self._store, self.address, self.field = store, address.rstrip("/"), field
        if not address.startswith((LOCAL, BUCKET)):
            raise ConfigError(
                field, f"{address!r} is no folder: write file:///..., s3://bucket/folder, or hub:owner/name@revision"
            )
        if not self.names:
            raise NotFound(f"{field}: there is nothing in {address}")

    @cached_property
    def names(self) -> list[str]:
        """Files of the folder and of those in it."""
        if self._path is None:
            skip = len(self.address) + 1
            return sorted(info.uri[skip:] for info in self._store.list(self.address))
        return sorted(str(path.relative_to(self._path)) for path in self._path.rglob("*") if path.is_file())

    @property
    def _path(self) -> Path | None:
        if not self.address.startswith(LOCAL):
            return None
        path = Path(self.address.removeprefix(LOCAL))
        if not path.is_absolute():
            raise ConfigError(self.field, f"{self.address}: the path has to be absolute, file:///like/this")
        return path

    def read(self, name: str) -> bytes:
        """One file.

        Raises:
            DataError: it is not there; says what to do about the usual ones.
        """
        if name not in self.names:
            made = "AutoTokenizer" if name == TOKENIZER_FILE else "AutoModel"
            hint = f"{made}.from_pretrained(...).save_pretrained(...) writes it"
            raise DataError(f"{self.field}: {self.address} has no {name}; {hint}")
        return self._store.get(f"{self.address}/{name}") if self._path is None else (self._path / name).read_bytes()

    def read_json(self, name: str, otherwise: Any = None) -> Any:
        """One file of settings; ``otherwise`` where it is not there and something is given."""
        if otherwise is not None and name not in self.names:
            return otherwise
        try:
            return json.loads(self.read(name))
        except ValueError as failure:
            raise DataError(f"{self.field}: {self.address}/{name} is no JSON: {failure}") from failure

    @cached_property
    def weights(self) -> list[str]:
        """The files that hold its weights.

        Raises:
            DataError: there are none that can be read without running code.
        """
        found = weight_files(self.names)
        if any(name.endswith(".safetensors") for name in found):
            return found
        pickles = [name for name in self.names if name.endswith(PICKLES)]
        if pickles:
            raise DataError(
                f"{self.field}: {self.address} keeps its weights in {', '.join(pickles[:3])}, and such a file can run"
                " code where it is read; save the network with save_pretrained(..., safe_serialization=True)"
            )
        raise DataError(f"{self.field}: {self.address} has no model.safetensors")

    @property
    def taken(self) -> list[str]:
        """Everything that an artifact keeps of it."""
        return sorted([*(name for name in SETTINGS if name in self.names), *self.weights])

    @contextmanager
    def files(self, names: Sequence[str]) -> Generator[dict[str, Path]]:
        """Some files on the local disk, for as long as the block runs."""
        path = self._path
        if path is not None:
            yield {name: path / name for name in names}
            return
        with tempfile.TemporaryDirectory(prefix="modelyard-pretrained-") as scratch:
            for name in names:
                (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
                self._store.download(f"{self.address}/{name}", Path(scratch) / name)
            yield {name: Path(scratch) / name for name in names}


@contextmanager
def opened(store: Store, address: str, field: str, *, weights: bool) -> Generator[Folder]:
    """The folder, for as long as the block runs; one on a hub is downloaded for so long.

    Args:
        weights: of a hub: the weights too, or what says how to use them alone.

    Raises:
        ConfigError, NotFound, HubUnavailable: as `Folder` and `modelyard.hub.download`.
    """
    if not address.startswith(hub.PREFIX):
        yield Folder(store, address, field)
        return
    with tempfile.TemporaryDirectory(prefix="modelyard-hub-") as scratch:
        patterns = [*SETTINGS, *(WANTED_WEIGHTS if weights else ())]
        hub.download(address, field, store.settings.hub_url, Path(scratch), patterns)
        yield Folder(store, f"{LOCAL}{scratch}", field)


def take_in(catalog: Catalog, address: str, field: str, origin: Origin) -> Product:
    """The folder as a ``pretrained`` artifact: the same bytes are the same artifact, wherever they lay.

    Raises:
        ConfigError, DataError, NotFound: as `Folder`; weights are pickles alone, or there is no `config.json`; as
            `StoredWeights`: a file of weights is missing or truncated, or the index names what is not there.
    """
    with opened(catalog.store, address, field, weights=True) as folder, folder.files(folder.taken) as files:
        settings = folder.read_json(CONFIG_FILE)
        StoredWeights(files[CONFIG_FILE].parent, f"{field}: {address}")
        digests = {name: file_sha256(path) for name, path in files.items()}

        def build(attempt: Attempt) -> None:
            for name, path in files.items():
                attempt.add(name, path)
            attempt.facts.update(model_type=settings.get("model_type", ""))

        # No code makes it: the name is the contents.
        work = Work(kind="pretrained", config={"files": digests}, inputs={}, code_version="1")
        return catalog.produce(work, build, origin)


def own_length(folder: Folder) -> int:
    """Tokens that the folder's network was made for: of those numbers that its files give, the smallest."""
    said = [
        folder.read_json(SENTENCE_FILE, {}).get("max_seq_length"),
        folder.read_json(TOKENIZER_CONFIG_FILE, {}).get("model_max_length"),
        folder.read_json(CONFIG_FILE, {}).get("max_position_embeddings"),
    ]
    return min((int(length) for length in said if length), default=2**31)


def plain_tokenizer(body: bytes, where: str) -> str:
    """A `tokenizer.json` without the padding and cutting off that it may have been saved with; the same one, the same text.

    Raises:
        DataError: it is none.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(body)
    except Exception as failure:  # tokenizers raises bare ones
        raise DataError(f"{where}: tokenizers cannot read it: {failure}") from failure
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.to_str()


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
