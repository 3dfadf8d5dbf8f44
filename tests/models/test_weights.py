"""Weights in one file or in several: the same network either way, and what is not whole is refused."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modelyard.errors import DataError
from modelyard.models import MlpConfig, ModelSpec
from modelyard.models.build import build_model, load_model, save_model
from modelyard.models.weights import INDEX_FILE, Held, StoredWeights, split, weight_files, written
from tests.workbench import PROPERTY

SPEC = ModelSpec(model=MlpConfig(hidden_sizes=(5, 3)), input_width=4, output_width=2)
# Bytes: 20, 80, 12, 60, 8, 24; in their order, as many as stay within the bound, and one that is above it alone.
BOUND = 75
FILES = {
    "model-00001-of-00004.safetensors": ["layers.0.bias"],
    "model-00002-of-00004.safetensors": ["layers.0.weight"],
    "model-00003-of-00004.safetensors": ["layers.3.bias", "layers.3.weight"],
    "model-00004-of-00004.safetensors": ["layers.6.bias", "layers.6.weight"],
}
THIRD = "model-00003-of-00004.safetensors"


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_model(SPEC.model, 4, 2).eval()


def test_above_the_bound_weights_lie_in_several_files(tmp_path: Path):
    """With the index of Hugging Face; loaded they are the same network, and the same weights give the same bytes."""
    own = network()
    assert save_model(SPEC, own.state_dict(), tmp_path, BOUND) == ["model.json", *FILES, INDEX_FILE]
    first = {name: (tmp_path / name).read_bytes() for name in [*FILES, INDEX_FILE]}
    save_model(SPEC, own.state_dict(), tmp_path, BOUND)
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
    assert {name: sorted(load_file(tmp_path / name)) for name in FILES} == FILES
    assert json.loads(first[INDEX_FILE]) == {
        "metadata": {"total_size": 204},
        "weight_map": {name: file for file, names in FILES.items() for name in names},
    }
    rows = torch.randn(7, 4)
    assert torch.equal(load_model(tmp_path)(rows), own(rows))
    sizes = {name: len(body) for name, body in first.items() if name != INDEX_FILE}
    assert StoredWeights(tmp_path).num_bytes == sum(sizes.values())


def test_up_to_the_bound_the_file_is_what_it_always_was(tmp_path: Path):
    """Byte for byte what safetensors writes of all tensors: no artifact gets another digest."""
    weights = network().state_dict()
    assert save_model(SPEC, weights, tmp_path, 204) == ["model.json", "model.safetensors"]
    save_file(weights, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("bound", [100, 10])
def test_tied_weights_are_written_under_each_name(tmp_path: Path, bound: int):
    """As a checkpoint holds them; one file or several."""
    tied = torch.ones(4)
    list(written(Held({"embed": tied, "score": tied}), tmp_path, bound))
    found = StoredWeights(tmp_path).tensors()
    assert torch.equal(found["embed"], tied)
    assert torch.equal(found["score"], tied)


class Fresh(Held):
    """Weights that are made when they are read, and counted as long as they live."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.living: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.before: list[int] = []

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        self.before.append(len(self.living))
        made = {name: self.described[name].clone() for name in names}
        self.living.update(made.values())
        return made


def test_one_file_is_held_at_a_time(tmp_path: Path):
    """The weights of one are gone before the next one's are read."""
    source = Fresh(network().state_dict())
    assert list(written(source, tmp_path, BOUND)) == [*FILES, INDEX_FILE]
    assert source.before == [0, 0, 0, 0]


@PROPERTY
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 100)), st.integers(1, 120))
def test_every_weight_has_one_place(sizes: dict[str, int], bound: int):
    """In the order of names; a share is within the bound, unless it is a single weight above it; no two neighbours would fit one."""
    shares = split(sizes, bound)
    assert [name for share in shares for name in share] == sorted(sizes)
    filled = [sum(sizes[name] for name in share) for share in shares]
    assert all(total <= bound or len(share) == 1 for total, share in zip(filled, shares, strict=True))
    assert all(here + sizes[share[0]] > bound for here, share in zip(filled, shares[1:], strict=False))


def test_files_of_weights_are_known_by_their_names():
    """One, several and the index; nothing else of a folder."""
    others = ["model.json", "pytorch_model.bin", "a/model.safetensors", "model.onnx", "xmodel.safetensors"]
    assert weight_files([*others, *FILES, INDEX_FILE]) == [*FILES, INDEX_FILE]
    assert weight_files([*others, "model.safetensors"]) == ["model.safetensors"]


def _index(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_text())
        (folder / INDEX_FILE).write_text(json.dumps(index | {"weight_map": index["weight_map"] | changes}))

    return change


def _truncate(folder: Path) -> None:
    (folder / THIRD).write_bytes((folder / THIRD).read_bytes()[:-7])


@pytest.mark.parametrize(("harm", "words"), [
    (lambda folder: (folder / THIRD).unlink(), rf"^{THIRD} is missing: {INDEX_FILE} says that weights are in it"),
    (_index(more=THIRD), rf"^{THIRD} has no tensor 'more', which {INDEX_FILE} says is in it; bring the folder over again"),
    (_truncate, rf"^{THIRD} cannot be read: it is truncated, or no safetensors"),
    (_index(more=f"../{THIRD}"), rf"^{INDEX_FILE} says that 'more' is in '\.\./{THIRD}', which is no file of weights in this folder"),
    (_index(more="/etc/passwd"), rf"^{INDEX_FILE} says that 'more' is in '/etc/passwd'"),
    (_index(more=7), rf"^{INDEX_FILE} is no index of weights: "),
    (lambda folder: (folder / INDEX_FILE).write_text("{"), rf"^{INDEX_FILE} is no index of weights: Invalid JSON"),
    (lambda folder: (folder / INDEX_FILE).unlink(), rf"^model\.safetensors is missing, and so is {INDEX_FILE}"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"weights"), r"^model\.safetensors cannot be read: it is truncated"),
])  # fmt: skip
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, harm: Callable[[Path], object], words: str):
    """By the name of the file, before a tensor is read."""
    save_model(SPEC, network().state_dict(), tmp_path, BOUND)
    harm(tmp_path)
    with pytest.raises(DataError, match=words):
        load_model(tmp_path)


def test_a_weight_too_few_does_not_fit_the_network(tmp_path: Path):
    """The files agree with each other, but not with the network."""
    weights = dict(network().state_dict())
    del weights["layers.3.bias"]
    save_model(SPEC, weights, tmp_path, BOUND)
    with pytest.raises(
        DataError, match=rf"(?s){INDEX_FILE} does not fit the network in model\.json: .*layers\.3\.bias"
    ):
        load_model(tmp_path)
