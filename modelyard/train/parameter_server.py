"""Ranks that hold the weights, and ranks that work for them: Li et al. 2014, "Scaling Distributed Machine Learning with
the Parameter Server".

Of the ranks, the last ``servers`` are servers. Each holds some parameters, whole and by name, with their optimizer state;
a worker keeps a copy of all, knows which version it is, and is sent only what is newer. Weights and state are saved
under the names that every strategy uses, so any other can go on with them.

Synchronously the workers share each batch and a server moves its weights once it has the gradient of all, summed in the
order of ranks: what one process computes, and the same bits each time.

Asynchronously each worker takes the next whole batch and goes on alone. The first server hands out the steps, and holds one
back while a gradient under way could otherwise come to be more than ``staleness`` updates old. No gradient is ever thrown
away, and with ``staleness`` 0 the course is that of one process. A push goes to the first server last: what that one
has counted, all servers have taken in, so the bound holds on each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
from torch import distributed, nn
from torch.optim import Optimizer

from modelyard.train.holdings import Holding, deal
from modelyard.train.messages import Kind, Message, Messages
from modelyard.train.optimizers import build_optimizers
from modelyard.train.rows import Rows
from modelyard.train.step_queue import StepQueue
from modelyard.train.stepper import Part, Step, Stepper, Tally

# Longer than any step, shorter than the silence after which the launching process gives up.
TIMEOUT = timedelta(seconds=60)


class ServedStepper(Stepper):
    """What workers and servers have in common."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        own = self.config.parameter_server
        self.num_workers = self.world_size - own.servers
        self.runs_ahead = own.mode == "asynchronous"
        self.servers = list(range(self.num_workers, self.world_size))
        self._messages = Messages(TIMEOUT)
        self._among_servers = distributed.new_group(self.servers, backend="gloo", timeout=TIMEOUT)
        self._unclipped: torch.Tensor | None = None  # a server's squares of the last gradient that it clipped
        self._reached = 0  # the version after the last step of which this rank was told

    @cached_property
    def holdings(self) -> dict[int, Holding]:
        """Rank of each server -> what it holds: the same on every rank."""
        count = self.config.parameter_server.servers
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        dealt = deal([parameter.numel() for parameter in parameters], count)
        first = self.world_size - count
        return {first + number: Holding([parameters[one] for one in dealt[number]]) for number in range(count)}

    def advance(self, split: Rows, steps: Sequence[Step]) -> Tally:
        made = self._run_ahead(split, steps) if self.runs_ahead else super().advance(split, steps)
        self._reached = steps[-1].number + 1
        return made

    def _run_ahead(self, split: Rows, steps: Sequence[Step]) -> Tally:
        """This rank's share of steps that each are one worker's."""
        raise NotImplementedError

    @torch.no_grad()
    def align_(self) -> None:
        """Every server's weights and averages, and rank 0's buffers, on every rank."""
        for server, holding in self.holdings.items():
            kinds = [holding.parameters]
            if self.average:
                kinds.append([self.average.of(parameter) for parameter in holding.parameters])
            for tensors in kinds:
                vector = holding.gathered(tensors)
                distributed.broadcast(vector, src=server)
                holding.spread_(vector, tensors)
        super().align_()

    def gradient_norm(self) -> float:
        """Norm of the servers' last gradient, before they clipped it. Every rank must ask."""
        holding = self.holdings.get(self.rank)
        square = torch.zeros((), dtype=torch.float64)
        if holding:
            square = holding.squares() if self._unclipped is None else self._unclipped.clone()
        square = square.to(self.device)
        distributed.all_reduce(square)
        return float(square.sqrt())


class WorkerStepper(ServedStepper):
    """Reads weights from the servers and sends them gradients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.part = Part(0, 1) if self.runs_ahead else Part(self.rank, self.num_workers)
        self._versions = dict.fromkeys(self.servers, -1)
        self._stalest = 0

    def _build_optimizers(self) -> list[Optimizer]:
        return []

    def step(self, split: Rows, rows: torch.Tensor, number: int, rate: float) -> torch.Tensor:
        del rate  # the servers know it
        self._pull(number)
        total = self._gradients(split, rows)
        for server in self.servers:
            self._push(server, number)
        return total

    def _run_ahead(self, split: Rows, steps: Sequence[Step]) -> Tally:
        by_number = {step.number: step for step in steps}
        total, num_rows = torch.zeros((), dtype=torch.float64, device=self.device), 0
        while (number := self._next()) is not None:
            rows = by_number[number].rows
            self._pull()
            total += self._gradients(split, rows)
            num_rows += len(rows)
            if self.config.clip_norm:  # here, where the whole gradient is
                self._clip_()
            for server in reversed(self.servers):
                self._push(server, number)
                taken = self._messages.reply(server)
                self._stalest = max(self._stalest, taken.version - 1 - self._versions[server])
        for server in self.servers[1:]:
            self._messages.ask(Message(server, Kind.LEAVING))
        return Tally(total, num_rows)

    def align_(self) -> None:
        super().align_()
        self._versions = dict.fromkeys(self.servers, self._reached)

    def figures(self) -> dict[str, float]:
        """How many updates old the oldest gradient of this worker was."""
        if not self.runs_ahead:
            return {}
        stalest, self._stalest = self._stalest, 0
        return {"staleness": float(stalest)}

    def _gradients(self, split: Rows, rows: torch.Tensor) -> torch.Tensor:
        """Of the mean over the batch, this worker's part; servers sum up what workers send."""
        self.network.zero_grad(set_to_none=True)
        return self._accumulate(split, self.part.of(rows), 1 / len(rows), self._num_passes(len(rows)))

    def _next(self) -> int | None:
        first = self.servers[0]
        self._messages.ask(Message(first, Kind.NEXT))
        answer = self._messages.reply(first)
        return answer.number if answer.kind == Kind.STEP else None

    def _pull(self, at_least: int = 0) -> None:
        """Bring every copy up to date, and to this version; a server answers once it is there."""
        for server in self.servers:  # all at once: the slowest decides
            self._messages.ask(Message(server, Kind.PULL, at_least, self._versions[server]))
        for server in self.servers:
            answer = self._messages.reply(server)
            if answer.version != self._versions[server]:
                holding = self.holdings[server]
                holding.spread_(self._messages.values(server, holding.size), holding.parameters)
                self._versions[server] = answer.version

    def _push(self, server: int, number: int) -> None:
        gradient = self.holdings[server].gradient()
        self._messages.ask(Message(server, Kind.PUSH, number, self._versions[server]), gradient)


class ServerStepper(ServedStepper):
    """Holds some of the weights and moves them.

    Attributes:
        version: updates of its weights since the beginning of training.
        stalest: the most updates that came between a worker's reading and its update, of all it has taken.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.version = self.stalest = 0
        self._early: list[Message] = []  # questions for the weights of the next step

    @property
    def holding(self) -> Holding:
        return self.holdings[self.rank]

    def _build_optimizers(self) -> list[Optimizer]:
        return build_optimizers(self.config.optimizer, self.network, self.device, self.holding.__contains__)

    def advance(self, split: Rows, steps: Sequence[Step]) -> Tally:
        self.version = steps[0].number
        made = super().advance(split, steps)
        return Tally(made.loss, 0)

    def step(self, split: Rows, rows: torch.Tensor, number: int, rate: float) -> torch.Tensor:
        """Serve one step that all workers share."""
        del split, rows
        for message in self._early:
            self._send_weights(message)
        self._early.clear()
        arrived: dict[int, torch.Tensor] = {}
        total, num_added = torch.zeros(self.holding.size), 0
        while num_added < self.num_workers:
            message = self._messages.request()
            if message.kind == Kind.PULL and message.number > self.version:
                self._early.append(message)  # this worker's push is in, another's is not
                continue
            if message.kind == Kind.PULL:
                self._send_weights(message)
                continue
            arrived[message.peer] = self._messages.values(message.peer, self.holding.size)
            while num_added in arrived:  # in the order of ranks: sums of floats depend on it
                total += arrived.pop(num_added)
                num_added += 1
        self._move(total, number, rate)
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def _run_ahead(self, split: Rows, steps: Sequence[Step]) -> Tally:
        del split
        rates = {step.number: step.rate for step in steps}
        queue = StepQueue([step.number for step in steps], self.config.parameter_server.staleness, self.version)
        num_present = self.num_workers
        while num_present:
            message = self._messages.request()
            match message.kind:
                case Kind.PULL:
                    self._send_weights(message)
                case Kind.PUSH:
                    self._take(message, rates[message.number])
                    queue.done(message.peer, self.version)
                case Kind.NEXT:
                    queue.ask(message.peer)
                case _:
                    num_present -= 1
            for peer, number in queue.granted():
                kind = Kind.NONE_LEFT if number is None else Kind.STEP
                self._messages.answer(Message(peer, kind, number or 0, self.version))
                num_present -= number is None
        return Tally(torch.zeros((), dtype=torch.float64, device=self.device), 0)

    def _take(self, message: Message, rate: float) -> None:
        gradient = self._messages.values(message.peer, self.holding.size)
        late = self.version - message.version
        self.stalest = max(self.stalest, late)
        # Of a gradient that comes late the rate is divided by how late: Zhang et al. 2016, arXiv 1511.05950.
        self._move(gradient, message.number, rate / max(late, 1))
        self._messages.answer(Message(message.peer, Kind.TAKEN, message.number, self.version))

    def _send_weights(self, asked: Message) -> None:
        newer = asked.version != self.version
        weights = self.holding.gathered(self.holding.parameters) if newer else None
        self._messages.answer(Message(asked.peer, Kind.WEIGHTS, version=self.version), weights)

    def _move(self, gradient: torch.Tensor, number: int, rate: float) -> None:
        self.holding.take_gradient_(gradient)
        self._apply(number, rate)
        self.version += 1

    def _clip_(self) -> None:
        """By the norm over all servers; asynchronously the worker has done it."""
        if self.runs_ahead:
            return
        square = self.holding.squares()
        self._unclipped = square.clone()
        distributed.all_reduce(square, group=self._among_servers)
        norm = square.sqrt().to(self.device, torch.float32)
        nn.utils.clip_grads_with_norm_(self.holding.parameters, self.config.clip_norm, norm)
