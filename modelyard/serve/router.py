"""Which version answers: the routing table, the weighted draw, and another worker when one dies."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from zlib import crc32

import numpy as np

from modelyard.errors import EndpointUnavailable, NotFound
from modelyard.revisions import Revision, first_revision
from modelyard.serve.limits import Limits
from modelyard.serve.running import RunningVersion
from modelyard.serve.trial import Trial
from modelyard.serve.wire import Tensor
from modelyard.serve.workers import WorkerLost


class Route:
    """The versions of one model with their weights, and the one kept warm for going back.

    Attributes:
        silent: a canary that must answer nobody, not even for a dead worker: it was sent back, or is in the shadow.
    """

    def __init__(
        self,
        weighted: Sequence[tuple[RunningVersion, float]],
        previous: RunningVersion | None = None,
        silent: RunningVersion | None = None,
    ) -> None:
        self.weighted = tuple(weighted)
        self.previous = previous
        self.silent = silent
        self._bounds = list(accumulate(weight for _, weight in self.weighted))

    @property
    def stable(self) -> RunningVersion:
        """The version with the largest weight."""
        return max(self.weighted, key=lambda pair: pair[1])[0]

    def draw(self, at_fraction: float) -> RunningVersion:
        """The version at a point of [0, 1) when weights lie side by side, or who has the weight of one that keeps dying."""
        if len(self.weighted) == 1:
            drawn = self.weighted[0][0]
        else:
            place = bisect_right(self._bounds, at_fraction * self._bounds[-1])
            drawn = self.weighted[min(place, len(self.weighted) - 1)][0]
        return self._heir(drawn) if drawn.keeps_dying else drawn

    def shares(self) -> dict[RunningVersion, float]:
        """Percent of the requests that each version gets now."""
        shares = dict.fromkeys(self.in_order(), 0.0)
        for version, weight in self.weighted:
            shares[self._heir(version) if version.keeps_dying else version] += weight
        return shares

    def _heir(self, dying: RunningVersion) -> RunningVersion:
        """The heaviest version of the same width that does not keep dying; itself where there is none."""
        for version in self.in_order():
            if version.is_available and not version.keeps_dying and version.info.width == dying.info.width:
                return version
        return dying

    def named(self) -> Iterator[tuple[RunningVersion, float]]:
        """Every version that the revision gives requests or copies of them, with its weight."""
        yield from self.weighted
        if self.silent:
            yield self.silent, 0.0

    def in_order(self) -> Iterator[RunningVersion]:
        """Who may answer: heaviest first, the previous one last."""
        for version, _ in sorted(self.weighted, key=lambda pair: -pair[1]):
            yield version
        if self.previous:
            yield self.previous


@dataclass(frozen=True)
class Table:
    """Everything the router needs to know, replaced as a whole."""

    revision: Revision = field(default_factory=first_revision)
    routes: Mapping[str, Route] = field(default_factory=dict)

    def versions(self) -> Iterator[RunningVersion]:
        for route in self.routes.values():
            yield from route.in_order()


class Router:
    """Picks versions from the table in force; `table` may be replaced at any time.

    Attributes:
        trials: rollouts under way, by model: whoever asks by weight counts what became of it.
    """

    def __init__(self, limits: Limits, chance: random.Random | None = None) -> None:
        self.table = Table()
        self.trials: dict[str, Trial] = {}
        self._limits = limits
        self._chance = chance or random.Random()

    def pick(self, model: str, version: str | None = None, key: bytes | None = None) -> RunningVersion:
        """The version that shall answer: drawn by weight, or the one that was asked for.

        Requests with one ``key`` fall on one version as long as the weights stay; while a canary's weight grows, a key
        that has come to it stays with it.

        Raises:
            NotFound: the endpoint does not serve it.
        """
        route = self.table.routes.get(model)
        if route is None:
            raise NotFound(f"this endpoint serves no model {model!r}")
        if version is None:
            return route.draw(crc32(key) / 2**32 if key else self._chance.random())
        for running in route.in_order():
            if running.served.version == version:
                return running
        raise NotFound(f"model {model!r} has no version {version!r} here")

    def zero(self, model: str) -> None:
        """Take the canary's weight away, now: from the next draw on the stable version answers, and the canary nobody."""
        table = self.table
        (stable, _), (canary, _) = table.routes[model].named()
        route = Route([(stable, 100.0)], table.routes[model].previous, silent=canary)
        self.table = Table(table.revision, {**table.routes, model: route})

    async def infer_instead(
        self, lost: RunningVersion, rows_for: Callable[[RunningVersion], np.ndarray], *, pinned: bool
    ) -> tuple[RunningVersion, dict[str, Tensor]]:
        """Ask other versions of the model (only ``lost`` itself when ``pinned``), now that its worker died over it.

        Args:
            rows_for: the request's rows as a version reads them: each has tokens and codes of its own.

        Returns:
            The version that answered, and its answers.

        Raises:
            EndpointUnavailable: nobody could answer in time.
            DataError: a version that was to answer does not read the request.
        """
        for _ in range(self._limits.max_tries - 1):
            lost = await self._stand_in(lost, lost.info.width, pinned)
            try:
                return lost, await lost.infer(rows_for(lost))
            except WorkerLost:
                continue
        raise EndpointUnavailable(f"{self._limits.max_tries} workers died over this request")

    async def _stand_in(self, lost: RunningVersion, width: int, pinned: bool) -> RunningVersion:
        """A living version of the same model that takes such rows; else the first to come back."""
        candidates = [lost] if pinned else self._alternatives(lost, width)
        for version in candidates:
            if version.is_available:
                return version
        heaviest = candidates[0]
        try:
            async with asyncio.timeout(self._limits.comeback_seconds):
                await heaviest.wait_available()
        except TimeoutError:
            raise EndpointUnavailable(f"no worker of {lost.model!r} came back in time") from None
        return heaviest

    def _alternatives(self, lost: RunningVersion, width: int) -> list[RunningVersion]:
        route = self.table.routes.get(lost.model)
        fitting = [version for version in route.in_order() if version.info.width == width] if route else []
        return fitting or [lost]
