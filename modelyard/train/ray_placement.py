"""Which rank goes where in a Ray cluster, and what it must be told: plain arithmetic, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelyard.errors import ConfigError
from modelyard.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is asked of the cluster.

    Attributes:
        ranks: of each agent, all of which one node has room for.
        strategy: Ray's word for where agents go: ``PACK`` together where they fit, ``STRICT_SPREAD`` one on each node.
    """

    ranks: tuple[int, ...]
    strategy: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an agent found itself.

    Attributes:
        address: of its machine.
        port: free there.
        gpus: ids of those that Ray gave it.
        code: version of the code and the libraries that its ranks would run.
        problem: why they cannot be run at all.
    """

    address: str
    port: int
    gpus: tuple[str, ...]
    code: str
    problem: str = ""


def rooms(nodes: Sequence[Mapping[str, Any]], config: TrainConfig) -> list[int]:
    """How many ranks each living node could hold if nobody else used it, most first.

    Args:
        nodes: as ``ray.nodes()`` describes them.
    """
    found = []
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            by_gpus = [int(has.get("GPU", 0)) // config.ray.gpus] if config.ray.gpus else []
            found.append(min(int(has.get("CPU", 0)) // config.ray.cpus, *by_gpus, config.most_ranks))
    return sorted(found, reverse=True)


def lay_out(config: TrainConfig, found: Sequence[int]) -> Layout:
    """How the ranks are spread over nodes with room for so many each.

    Raises:
        ConfigError: they do not fit, however long one waits.
    """
    least, most = config.node_range
    each = f"{config.ray.cpus} CPU" + (f" and {config.ray.gpus} GPU" if config.ray.gpus else "")
    there = f"the {len(found)} nodes of the Ray cluster have room for {', '.join(map(str, found))} of {each} each"
    if most == 1:
        if sum(found) < config.ranks:
            raise ConfigError("train.ranks", f"{config.ranks} ranks, and {there}")
        return Layout(ranks=(1,) * config.ranks, strategy="PACK")
    large = sum(room >= config.ranks for room in found)
    if large < least:
        advice = "; nodes: 1 takes ranks wherever there is room" if sum(found) >= config.ranks * least else ""
        raise ConfigError("train.nodes", f"{config.nodes} nodes with {config.ranks} ranks each, and {there}{advice}")
    return Layout(ranks=(config.ranks,) * min(most, large), strategy="STRICT_SPREAD")


def in_order(places: Sequence[Place]) -> list[int]:
    """Indices of agents, those of one machine side by side; where the first one is, ranks meet."""
    first_of = {place.address: index for index, place in reversed(list(enumerate(places)))}
    return sorted(range(len(places)), key=lambda index: (first_of[places[index].address], index))


def rank_environments(places: Sequence[Place], ranks: Sequence[int]) -> list[list[dict[str, str]]]:
    """What torch's launcher would have told the ranks of each agent, in the order of `in_order`.

    A rank sees all GPUs that its machine gave to this training, and takes the one of its local number.
    """
    on_machine: dict[str, int] = {}
    gpus: dict[str, list[str]] = {}
    for place, count in zip(places, ranks, strict=True):
        on_machine[place.address] = on_machine.get(place.address, 0) + count
        gpus.setdefault(place.address, []).extend(place.gpus)
    started = dict.fromkeys(on_machine, 0)
    machines = list(on_machine)
    told, number = [], 0
    for place, count in zip(places, ranks, strict=True):
        of_agent = []
        for _ in range(count):
            of_agent.append({
                "RANK": str(number),
                "WORLD_SIZE": str(sum(ranks)),
                "LOCAL_RANK": str(started[place.address]),
                "LOCAL_WORLD_SIZE": str(on_machine[place.address]),
                "GROUP_RANK": str(machines.index(place.address)),
                "MASTER_ADDR": places[0].address,
                "MASTER_PORT": str(places[0].port),
                "CUDA_VISIBLE_DEVICES": ",".join(gpus[place.address]),
            })  # fmt: skip
            number += 1
            started[place.address] += 1
        told.append(of_agent)
    return told
