"""Every bound of the endpoint in one place. Nothing here waits or grows without one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on time, size and number.

    Attributes:
        poll_seconds: how often the bucket is asked for a newer revision.
        retry_seconds: first and longest pause before a revision that failed in passing is tried again.
        request_seconds: a request not answered by then gets a 504.
        head_seconds: a request whose head has not arrived by then, from its first byte, gets a 408.
        keep_alive_seconds: a connection that says nothing for so long is closed; longer than the pools of usual
            clients keep an idle one.
        max_connections: a further one is told 503 and closed.
        body_seconds: a request whose body has not arrived by then gets a 408.
        stall_seconds, hang_seconds: a worker that owes an answer for twenty times what it usually takes, but no shorter
            than the one and no longer than the other, is killed and restarted; its requests have time left then.
        load_seconds: from the start of a worker to its first answer.
        comeback_seconds: how long a request waits for a dead worker when no other version can answer.
        respawn_seconds: first and longest pause before a dead worker is started again.
        max_deaths: after so many deaths in a row a version loses its weight to the other versions of its model.
        steady_seconds: a worker that lived this long ends the row.
        drain_seconds: how long a replaced version finishes what it began.
        shutdown_seconds: the same for the whole endpoint; below what its supervisor waits before SIGKILL.
        idle_seconds: how long a stopping endpoint waits for idle clients to send one more request.
        handover_seconds: the same for a router that another one has replaced; above `keep_alive_seconds`.
        accept_seconds: how long a starting router lets clients wait in the socket's queue for the local state.
        max_body_bytes: a longer request body gets a 413.
        max_batch_rows: rows of different requests given to a worker in one call.
        max_unanswered_batches: calls a worker may owe; while it owes them, later requests gather to larger batches.
        slow_call_seconds: a model that takes longer for a call owes one at a time, a quarter as many.
        max_queued_requests, max_queued_bytes: what may wait for one version before a request gets a 429.
        max_unrecorded_bytes: what may wait for the prediction log's process before answers are left out of it.
        record_seconds: how long a leaving router waits for that process to write what it has.
        max_tries: workers that one request may see die.
    """

    poll_seconds: float = 2.0
    retry_seconds: tuple[float, float] = (2.0, 60.0)
    request_seconds: float = 10.0
    head_seconds: float = 10.0
    keep_alive_seconds: float = 75.0
    max_connections: int = 16_384
    body_seconds: float = 30.0
    stall_seconds: float = 3.0
    hang_seconds: float = 10.0
    load_seconds: float = 60.0
    comeback_seconds: float = 8.0
    respawn_seconds: tuple[float, float] = (0.05, 5.0)
    max_deaths: int = 3
    steady_seconds: float = 60.0
    drain_seconds: float = 20.0
    shutdown_seconds: float = 7.0
    idle_seconds: float = 1.0
    handover_seconds: float = 80.0
    accept_seconds: float = 10.0
    max_body_bytes: int = 16 * 2**20
    max_batch_rows: int = 64
    max_unanswered_batches: int = 4
    slow_call_seconds: float = 0.002
    max_queued_requests: int = 1024
    max_queued_bytes: int = 256 * 2**20
    max_unrecorded_bytes: int = 8 * 2**20
    record_seconds: float = 3.0
    max_tries: int = 4
