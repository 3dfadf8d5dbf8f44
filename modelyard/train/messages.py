"""Messages between workers and servers of parameters: a head of a few numbers, then perhaps a vector of fp32.

Sent point to point over a gloo group of their own, whatever the device: a head is taken from whoever comes first, what
follows it from its sender. Every wait is bounded by the group's timeout.
"""

from __future__ import annotations

from datetime import timedelta
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import distributed

REQUEST, REPLY, VALUES = 1, 2, 3  # tags
HEAD_SIZE = 3


class Kind(IntEnum):
    """What a message is about."""

    PULL = 0  # worker: I have the weights of `version`; give me newer ones, of version `number` at least
    WEIGHTS = 1  # server: those of `version`; they follow, unless the worker has them
    PUSH = 2  # worker: the gradient of step `number` follows, made with the weights of `version`
    TAKEN = 3  # server: it has moved the weights, which are those of `version` now
    NEXT = 4  # worker: what shall I do?
    STEP = 5  # server: step `number`
    NONE_LEFT = 6  # server: no step is left until ranks meet
    LEAVING = 7  # worker: it asks no more until ranks meet


class Message(NamedTuple):
    """Head of a message; ``peer`` is the rank at its other end."""

    peer: int
    kind: Kind
    number: int = 0
    version: int = 0


class Messages:
    """One rank's end of the channel; every rank of the group makes one, in the same order."""

    def __init__(self, timeout: timedelta) -> None:
        self._group = distributed.new_group(backend="gloo", timeout=timeout)

    def ask(self, message: Message, values: torch.Tensor | None = None) -> None:
        """Send a worker's message, with a vector if there is one."""
        self._send(message, REQUEST, values)

    def answer(self, message: Message, values: torch.Tensor | None = None) -> None:
        """Send a server's message."""
        self._send(message, REPLY, values)

    def request(self) -> Message:
        """The next message of any worker."""
        head = torch.empty(HEAD_SIZE, dtype=torch.int64)
        peer = distributed.recv(head, group=self._group, tag=REQUEST)
        return _message(peer, head)

    def reply(self, server: int) -> Message:
        """A server's answer."""
        head = torch.empty(HEAD_SIZE, dtype=torch.int64)
        distributed.recv(head, src=server, group=self._group, tag=REPLY)
        return _message(server, head)

    def values(self, peer: int, size: int) -> torch.Tensor:
        """The vector (size,) that follows a message."""
        found = torch.empty(size)
        distributed.recv(found, src=peer, group=self._group, tag=VALUES)
        return found

    def _send(self, message: Message, tag: int, values: torch.Tensor | None) -> None:
        head = torch.tensor([message.kind, message.number, message.version], dtype=torch.int64)
        distributed.send(head, dst=message.peer, group=self._group, tag=tag)
        if values is not None:
            distributed.send(
                values.detach().float().cpu().contiguous(), dst=message.peer, group=self._group, tag=VALUES
            )


def _message(peer: int, head: torch.Tensor) -> Message:
    kind, number, version = head.tolist()
    return Message(peer, Kind(kind), number, version)
