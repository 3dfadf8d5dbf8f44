"""The weights of a network as files: one, or above a bound several with an index beside them.

    model.safetensors                    all weights
    model-00001-of-0000N.safetensors     or: as many whole tensors each as stay below the bound, in the order of names
    model.safetensors.index.json         and which file holds which tensor

That is how `transformers` lays a network out (`save_pretrained`, with its ``max_shard_size``), so it loads both. Whoever
reads or writes weights does it through this module and need not know which of the two there is. Torch is not imported
before a tensor is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from modelyard.errors import DataError

if TYPE_CHECKING:
    import torch

    from modelyard.artifacts import ArtifactRef, Manifest
    from modelyard.catalog import Catalog

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # a file that every store takes and a small machine can hold
FILE_OF_WEIGHTS = re.compile(r"^model(-\d+-of-\d+)?\.safetensors$")
Tensors = Mapping[str, "torch.Tensor"]


class _Index(BaseModel):
    """As far as it is read: ``metadata`` has the sum of bytes, which files themselves say better."""

    weight_map: dict[str, str]


class Source(Protocol):
    """Weights that may be anywhere, and are read some at a time."""

    @property
    def described(self) -> Tensors:
        """Every tensor's name, shape and type; the tensors may be on torch's meta device."""
        ...

    def read(self, names: Sequence[str]) -> Tensors:
        """Some of them, on the CPU."""
        ...


class Held:
    """Weights that are in memory. Tied ones are one tensor with two names, and two in a file: a copy for each name."""

    def __init__(self, tensors: Tensors) -> None:
        self.described = tensors

    def read(self, names: Sequence[str]) -> Tensors:
        found: dict[str, torch.Tensor] = {}
        places: set[int] = set()
        for name in names:
            tensor = self.described[name]
            place = tensor.untyped_storage().data_ptr()
            found[name] = tensor.clone() if place in places else tensor
            places.add(place)
        return found


# -- writing ----------------------------------------------------------------------------------------------


def written(
    source: Source,
    folder: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    prefix: str = "",
    metadata: dict[str, str] | None = None,
) -> Iterator[str]:
    """Write weights into a folder and name each file once it stands; the index comes last. Between two files none of their
    tensors is held: memory is that of the largest file. The same weights and bound give the same bytes.

    Args:
        max_shard_bytes: of tensors in one file; a single tensor above it has a file to itself.
        prefix: what names in ``source`` have before those that the files have.
        metadata: of each file's header.
    """
    from safetensors.torch import save_file

    shares = split({name: tensor.nbytes for name, tensor in source.described.items()}, max_shard_bytes)
    files = [f"model-{at:05d}-of-{len(shares):05d}.safetensors" for at in range(1, len(shares) + 1)]
    held = dict(zip(files if len(shares) > 1 else [WEIGHTS_FILE], shares, strict=True))
    for file, names in held.items():
        tensors = source.read(names)
        plain = {name.removeprefix(prefix): tensors[name].contiguous() for name in names}
        save_file(plain, folder / file, metadata)
        del tensors, plain  # before the next ones are read
        yield file
    if len(shares) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in source.described.values())},
            "weight_map": {name.removeprefix(prefix): file for file, names in held.items() for name in names},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        yield INDEX_FILE


def split(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Names in their order, cut wherever the next one would be too much; ``sizes`` in bytes. At least one share."""
    shares: list[list[str]] = [[]]
    filled = 0
    for name, size in sorted(sizes.items()):
        if shares[-1] and filled + size > max_bytes:
            shares.append([])
            filled = 0
        shares[-1].append(name)
        filled += size
    return shares


# -- reading ----------------------------------------------------------------------------------------------


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of a folder's or an artifact's files that weights are in, the index among them."""
    return sorted(name for name in names if name == INDEX_FILE or FILE_OF_WEIGHTS.match(name))


def fetch_weights(catalog: Catalog, ref: ArtifactRef, folder: Path, others: Sequence[str] = ()) -> Manifest:
    """Download the weights of a network into a local folder, and ``others`` of its files, each verified.

    Raises:
        NotFound: the artifact has none, or one of the others is not there.
        DigestMismatch: a file is not what was committed.
    """
    manifest = catalog.manifest(ref)
    found = weight_files(manifest.content.files) or [WEIGHTS_FILE]  # which is then named as missing
    return catalog.fetch(ref, folder, [*found, *others], manifest)


class StoredWeights:
    """The weights of a local folder, whichever way they lie there. What files say of themselves is checked at once; tensors
    are looked at when they are asked for.

    Args:
        where: the folder's name in sentences; empty: files are called by their own alone.

    Raises:
        DataError: there are none; a file is missing, truncated or lacks a tensor that the index says it has; or the index is
            none, or points out of the folder. Names the file.
    """

    def __init__(self, folder: Path, where: str = "") -> None:
        self._folder, self._where = folder, f"{where}/" if where else ""
        self._held: dict[str, list[str]] = {}  # file -> its tensors
        self.is_sharded = not (folder / WEIGHTS_FILE).is_file()
        if not self.is_sharded:
            self._held[WEIGHTS_FILE] = self._names_in(WEIGHTS_FILE)
            return
        for name, file in sorted(self._weight_map().items()):
            self._held.setdefault(file, []).append(name)
        for file, names in self._held.items():
            if lacking := sorted(set(names) - set(self._names_in(file))):
                self._refuse(file, f"has no tensor {lacking[0]!r}, which {INDEX_FILE} says is in it{_more(lacking)}")

    @property
    def name(self) -> str:
        """The file that stands for all of them."""
        return INDEX_FILE if self.is_sharded else WEIGHTS_FILE

    @property
    def num_bytes(self) -> int:
        """Of the files that hold tensors."""
        return sum((self._folder / file).stat().st_size for file in self._held)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them. They lie on the disk and come into memory where they are looked at, in pages that the system may drop
        again; one that is written to is copied. The files may be deleted meanwhile."""
        found: dict[str, torch.Tensor] = {}
        for file, names in self._held.items():
            with safe_open(self._folder / file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in names}
        return found

    def require_fit(self, shapes: Mapping[str, Sequence[int]], network: str) -> None:
        """Refuse weights of another network, without looking at one; ``network`` is its name in the sentence.

        Raises:
            DataError: names a weight that differs, with both shapes.
        """
        own: dict[str, list[int]] = {}
        for file, names in self._held.items():
            with safe_open(self._folder / file, framework="np") as opened:
                own |= {name: opened.get_slice(name).get_shape() for name in names}
        wanted = {name: list(shape) for name, shape in shapes.items()}
        if different := sorted(name for name in own.keys() | wanted.keys() if own.get(name) != wanted.get(name)):
            name = different[0]
            raise DataError(
                f"{self._where}{self.name} does not fit the network of {network}: {name} is {own.get(name, 'missing')} there"
                f" and {wanted.get(name, 'missing')} in the network"
            )

    def _weight_map(self) -> dict[str, str]:
        """Tensor -> file, as the index has it."""
        path = self._folder / INDEX_FILE
        if not path.is_file():
            self._refuse(WEIGHTS_FILE, f"is missing, and so is {INDEX_FILE}, which stands for weights in several files")
        try:
            found = _Index.model_validate_json(path.read_bytes()).weight_map
        except ValidationError as failure:
            problem = failure.errors()[0]["msg"]
            raise DataError(f"{self._where}{INDEX_FILE} is no index of weights: {problem}") from failure
        for name, file in found.items():
            if not FILE_OF_WEIGHTS.match(file):
                self._refuse(
                    INDEX_FILE, f"says that {name!r} is in {file!r}, which is no file of weights in this folder"
                )
        return found

    def _names_in(self, file: str) -> list[str]:
        if not (self._folder / file).is_file():
            self._refuse(file, f"is missing: {INDEX_FILE} says that weights are in it")
        try:
            with safe_open(self._folder / file, framework="np") as opened:
                return list(opened.keys())
        except SafetensorError as failure:
            raise DataError(
                f"{self._where}{file} cannot be read: it is truncated, or no safetensors ({failure})"
            ) from failure

    def _refuse(self, file: str, problem: str) -> None:
        raise DataError(f"{self._where}{file} {problem}; bring the folder over again, whole")


def _more(names: Sequence[str]) -> str:
    return f", nor {len(names) - 1} others" if len(names) > 1 else ""
