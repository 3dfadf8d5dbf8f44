"""The first weights of networks that are sharded before they have any."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.models import GptConfig, MlpConfig, ModelSpec
from modelyard.models.build import build_model, save_model
from modelyard.models.weights import StoredWeights
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import DistillConfig, FsdpConfig, HiddenConfig, InitConfig, TrainConfig
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.costs import memory_bytes
from modelyard.train.first_weights import draws_one_by_one, whole_because
from modelyard.train.rows import Split
from tests.train import runs
from tests.train.ranks import Ranks, ranks

VOCABULARY = 51  # no number of ranks divides it
SMALL = GptConfig(kind="gpt", layers=6, width=64, heads=4, key_value_heads=2)
CONFIG = TrainConfig(model=SMALL, strategy="fsdp", ranks=2, batch_size=4, seed=7)


class Held(TorchDispatchMode):
    """Counts the most bytes in memory that tensors made inside have held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._counted: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self._count(one.to_local() if isinstance(one, DTensor) else one)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, num_bytes = storage.data_ptr(), storage.nbytes()
        if tensor.device.type != "cpu" or not num_bytes or place in self._counted:
            return

        def forget(_: object) -> None:
            self._now -= num_bytes
            del self._counted[place]

        self._counted[place] = weakref.ref(storage, forget)
        self._now += num_bytes
        self.most = max(self.most, self._now)


def tokens() -> Split:
    drawn = torch.randint(0, VOCABULARY, (8, 9), generator=torch.Generator().manual_seed(0))
    return Split(features=drawn[:, :-1].contiguous(), targets=drawn[:, 1:].contiguous())


def begun(
    settings: Settings, folder: str, config: TrainConfig, vocabulary: int, place: str, stored: Path | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """The first weights, put together, drawn or those of a folder; the most bytes held until they were there, as a share
    of the network's."""
    given = StoredWeights(stored).tensors() if stored else None  # on the disk: what is looked at counts as held
    with Held() as held:
        torch.manual_seed(config.seed)
        with torch.device(place):
            network = build_model(config.model, 8, vocabulary)
        num_bytes = sum(weight.nbytes for weight in network.parameters())
        made = runs.trainer(settings, folder, config, train=tokens(), network=network)
        made.stepper.stored = given
        made.stepper.draw_(lambda: None)
        del network
    return runs.weights(made), held.most / num_bytes


def require_first_weights(found: dict[str, torch.Tensor], config: TrainConfig) -> None:
    torch.manual_seed(config.seed)
    one = build_model(config.model, 8, VOCABULARY).state_dict()
    assert found.keys() == one.keys()
    for name, weight in one.items():
        assert torch.equal(found[name], weight), name


WAYS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp", "fsdp": FsdpConfig(checkpoint_activations=True), "ema_decay": 0.9},
    "tensor": {"strategy": "tensor", "model": SMALL.model_copy(update={"tie_embeddings": False})},
    "hsdp": {"strategy": "hsdp"},
}


@pytest.mark.parametrize("way", ["fsdp", "tensor", pytest.param("hsdp", marks=pytest.mark.soak)])
def test_ranks_draw_what_one_process_draws_and_hold_their_share(pair: Ranks, settings: Settings, folder: str, way: str):
    """Bit for bit, embeddings tied or not, sizes that two ranks cannot share evenly; and hardly more than half of the
    network in memory."""
    config = CONFIG.model_copy(update=WAYS[way])
    for found, share in pair.run(begun, settings, folder, config, VOCABULARY, "meta"):
        require_first_weights(found, config)
        assert 0.5 < share < (1.2 if config.ema_decay else 0.7)  # an average is another share


@pytest.mark.parametrize("way", ["fsdp", "tensor", pytest.param("hsdp", marks=pytest.mark.soak)])
def test_ranks_read_what_is_stored_and_hold_their_share(
    pair: Ranks, settings: Settings, folder: str, tmp_path: Path, way: str
):
    """Weights that are there, in several files: bit for bit, and each rank copies its part of them."""
    config = CONFIG.model_copy(update=WAYS[way])
    torch.manual_seed(77)
    own = build_model(config.model, 8, VOCABULARY).state_dict()
    assert (
        len(save_model(ModelSpec(model=config.model, input_width=8, output_width=VOCABULARY), own, tmp_path, 20_000))
        > 5
    )
    for found, share in pair.run(begun, settings, folder, config, VOCABULARY, "meta", tmp_path):
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], own[name]) for name in own)
        assert 0.5 < share < (1.2 if config.ema_decay else 0.7)  # an average is another share


def test_a_network_that_is_built_whole_is_held_whole(pair: Ranks, settings: Settings, folder: str):
    """What is measured above can be missed: the same bits, and more than all of them in memory."""
    for found, share in pair.run(begun, settings, folder, CONFIG, VOCABULARY, "cpu"):
        require_first_weights(found, CONFIG)
        assert share > 1


@pytest.mark.soak
@pytest.mark.parametrize(("way", "num_ranks"), [("fsdp", 3), ("hsdp", 4), ("tensor", 4)])
def test_more_ranks_draw_the_same(
    store: Store, settings: Settings, tmp_path: Path, folder: str, way: str, num_ranks: int
):
    """Shares of unequal size, copies of shards, and shards of parts of matrices."""
    config = CONFIG.model_copy(update={**WAYS[way], "ranks": num_ranks})
    with ranks(num_ranks, tmp_path) as group:
        for found, _ in group.run(begun, settings, folder, config, VOCABULARY, "meta"):
            require_first_weights(found, config)


def peak(settings: Settings, folder: str, config: TrainConfig, place: str) -> tuple[float, int]:
    """Bytes that this process came to hold above what it held before, up to the first weights; bytes of the network."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel begins its count of the most anew
    before = memory_bytes(runs.CPU)
    with torch.device(place):
        network = build_model(config.model, 8, VOCABULARY)
    num_bytes = sum(weight.nbytes for weight in network.parameters())
    made = runs.trainer(settings, folder, config, train=tokens(), network=network)
    made.stepper.draw_(lambda: None)
    return memory_bytes(runs.CPU) - before, num_bytes


@pytest.mark.soak
def test_a_rank_never_holds_a_network_of_a_hundred_million_weights(
    store: Store, settings: Settings, tmp_path: Path, folder: str
):
    """By the kernel's own count, two ranks: built whole, a rank holds all of it; from the meta device its half."""
    config = CONFIG.model_copy(update={"model": GptConfig(kind="gpt", layers=32, width=512, heads=8)})
    found = {}
    for place in ("meta", "cpu"):
        (tmp_path / place).mkdir()
        with ranks(2, tmp_path / place) as group:
            group.run(begun, settings, f"{folder}/{place}-first", CONFIG, VOCABULARY, place)  # imports and first uses
            found[place] = group.run(peak, settings, f"{folder}/{place}", config, place)
    for held, num_bytes in found["meta"]:
        assert num_bytes > 4e8
        assert held < 0.65 * num_bytes
    assert all(held > num_bytes for held, num_bytes in found["cpu"])


@pytest.mark.parametrize(("update", "has_weights", "words"), [
    ({}, False, ""),
    ({"strategy": "ddp"}, False, ""),
    ({}, True, ""),
    ({"model": MlpConfig()}, True, "it begins with weights that are there"),
    ({"init": InitConfig(keep_zeros=True)}, False, "it begins with weights that are there"),
    ({"model": MlpConfig()}, False, "'mlp' cannot draw its weights one by one, as gpt can"),
    ({"compile": True}, False, "train.compile is tried on it before it is sharded"),
    ({"distill": DistillConfig(hidden=HiddenConfig())}, False, "its layers are held against a teacher's before it is sharded"),
])  # fmt: skip
def test_what_begins_with_a_whole_network_has_a_reason(update: dict[str, Any], has_weights: bool, words: str):
    """One for each; where nothing is sharded there is no share to begin with."""
    config = CONFIG.model_copy(update=update)
    assert whole_because(config, config.model, has_weights=has_weights) == words
    assert draws_one_by_one(config, config.model, has_weights=has_weights) == (not update)


def noted(settings: Settings, spec: RankSpec) -> list[str]:
    """What a rank says while its trainer is made."""
    said: list[str] = []
    assemble(
        spec, Catalog(Store(settings)), runs.CPU, lambda event: said.append(event.message), runs.local_rows(settings)
    )
    return said


def test_a_rank_says_why_it_begins_with_the_whole_network(
    pair: Ranks, settings: Settings, store: Store, dataset: ArtifactRef, config: TrainConfig, folder: str
):
    """Once for all ranks."""
    spec = RankSpec(
        dataset=dataset,
        config=config.model_copy(update={"strategy": "fsdp"}),
        checkpoints=f"{store.root}/tests/{folder}",
    )
    assert pair.run(noted, settings, spec) == [
        ["each rank begins with the whole network: 'mlp' cannot draw its weights one by one, as gpt can"],
        [],
    ]
