"""One inference request from its bytes to its answer, without a task or a timer of its own.

Both front doors lead here: connections that speak HTTP to us directly (`http`), and any ASGI server (`app`). A
request is parsed, checked and queued in the turn of the event loop in which it arrived; its answer is written in the
turn in which its batch came back. Only a worker's death makes it a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from modelyard.serve.answers import JSON, Answer, Headers, HttpError, refusal
from modelyard.serve.bodies import Encoding, Head, compress, decompress
from modelyard.serve.deadlines import Deadlines
from modelyard.serve.disclosure import Disclosure
from modelyard.serve.limits import Limits
from modelyard.serve.lineage import Lineage, http_error
from modelyard.serve.metrics import Metrics
from modelyard.serve.recording import Recorder
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.shadow import are_finite
from modelyard.serve.trial import Trial
from modelyard.serve.unread import Answered, Told, Unread
from modelyard.serve.wire import RAW_OUTPUTS, Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.serve.workers import WorkerLost

logger = logging.getLogger(__name__)

Reply = Callable[[Answer], None]
Sent = tuple[Head, bytes, WorkerInfo]  # a request as it came, and by whom it was read


class Request(Protocol):
    """A parsed request: raw rows (n, width), and whatever its dialect needs for the answer."""

    @property
    def rows(self) -> np.ndarray: ...


class Dialect(Protocol):
    """One protocol of inference requests: bytes to rows, and answers to bytes."""

    def passes_on(self, body: bytes, head: Head, info: WorkerInfo) -> bool:  # noqa: ARG002 (for those who can)
        """Whether the worker may read a request and write its answer.

        Raises:
            HttpError: it is none of this protocol.
        """
        return False

    def read(self, body: bytes, head: Head, model: str, info: WorkerInfo) -> Any:
        """A `Request`.

        Raises:
            HttpError, DataError: it does not say what the protocol wants, or does not fit the model.
        """
        ...

    def describe_content(self, head_bytes: int | None) -> Headers:  # noqa: ARG002 (as above)
        """The headers of an answer that a worker wrote, whose JSON is so long where binary data follow."""
        return [JSON]

    def write(
        self,
        answers: Mapping[str, Tensor],
        info: WorkerInfo,
        request: Any,
        *,
        model: str,
        version: str,
        request_id: str,
    ) -> tuple[bytes, Headers]:
        """The body of the answer, and the headers that describe it."""
        ...


class Inferences:
    """Begins inferences, and knows what they share."""

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        lineage: Lineage,
        limits: Limits,
        recorder: Recorder | None,
        disclosure: Disclosure,
    ) -> None:
        self.num_in_flight = 0
        self.recorder = recorder
        self.disclosure = disclosure
        self.router = router
        self.metrics = metrics
        self.lineage = lineage
        self.limits = limits
        self.deadlines = Deadlines(limits.request_seconds)

    def begin(self, dialect: Dialect, model: str, version: str | None, head: Head, body: bytes, reply: Reply) -> None:
        """Answer a request for a model (and one version of it, if named); ``reply`` is called once, perhaps at once."""
        Inference(self, dialect, model, version, reply).begin(head, body)


class Inference:
    """One request. What it holds of its client is dropped as soon as it is over."""

    __slots__ = (
        "_accepts", "_asked", "_dialect", "_drawn", "_engine", "_is_odd", "_is_recorded", "_key", "_lineage", "_model", "_pair", "_picked", "_reply",
        "_request", "_second_try", "_sent", "_started", "_trial", "_version", "is_over",
    )  # fmt: skip

    def __init__(self, engine: Inferences, dialect: Dialect, model: str, version: str | None, reply: Reply) -> None:
        self.is_over = False
        self._engine = engine
        self._dialect = dialect
        self._model = model
        self._version = version
        self._reply: Reply | None = reply
        self._started = self._asked = perf_counter()
        self._accepts: Encoding | None = None
        self._picked: RunningVersion | None = None
        self._request: Request | None = None
        self._sent: Sent | None = None  # kept where nobody has read it yet, or another version would read it otherwise
        self._lineage: Headers = []  # of what the worker writes
        self._second_try: asyncio.Task[None] | None = None
        self._trial: Trial | None = None
        self._drawn: RunningVersion | None = None
        self._pair: int | None = None
        self._key: bytes | None = None
        self._is_odd = False
        self._is_recorded = engine.recorder is not None and engine.recorder.draws()
        engine.num_in_flight += 1

    def begin(self, head: Head, body: bytes) -> None:
        engine = self._engine
        self._accepts = head.accepts
        try:
            if head.encoding:
                body = decompress(body, engine.limits)
            # Draw, check and ask in one turn of the event loop: a switch of the table cannot come in between.
            picked = self._picked = engine.router.pick(self._model, self._version, head.key)
            if self._version is None and (trial := engine.router.trials.get(self._model)):
                self._trial, self._drawn, self._pair = trial, picked, trial.enter(picked, head.key)
                self._key = head.key
            info = picked.info
            rows: np.ndarray | Unread
            if self._passes_on(body, head, info):
                self._sent = head, body, info
                request_id, self._lineage = engine.lineage.stamp(picked)
                rows = Unread(body, head.head_bytes, request_id, info.width, self.told)
            else:
                self._request = self._dialect.read(body, head, self._model, engine.disclosure.info(info))
                rows = self._request.rows
                if info.transform or (self._trial and self._trial.canary.info.transform):
                    self._sent = head, body, info
            engine.deadlines.add(self)
            self._asked = perf_counter()
            picked.submit(self, rows)
        except Exception as failure:  # noqa: BLE001 (each becomes a status)
            self.failed(failure)

    def _passes_on(self, body: bytes, head: Head, info: WorkerInfo) -> bool:
        """Whether nobody here needs to know what the request says, nor what is answered."""
        is_seen = self._is_recorded or self._trial is not None or not self._engine.disclosure.is_full
        return not is_seen and self._dialect.passes_on(body, head, info)

    def told(self, told: Told, among: Answered) -> None:
        """What the worker wrote is this request's answer, or the sentence why there is none."""
        if self.is_over:
            return
        if told.status != 200:
            self._refuse(HttpError(told.status, told.content.decode()))
            return
        arrived = perf_counter()
        answer = Answer(200, told.content, [*self._dialect.describe_content(told.head_bytes), *self._lineage])
        compress(answer, self._accepts)
        self._finish(answer)
        if picked := self._picked:
            read, write = among.read_seconds, among.write_seconds
            stages = (
                self._asked - self._started + read,
                arrived - self._asked - read - write,
                perf_counter() - arrived + write,
            )
            self._engine.metrics.count_stages(self._model, picked.served.version, stages)

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        """Rows [begin, end) of a batch's answers are this request's."""
        if self.is_over:
            return
        mine = {name: tensor[begin:end] for name, tensor in answers.items()}
        picked, request, sent, recorder = self._picked, self._request, self._sent, self._engine.recorder
        told = perf_counter()
        try:
            self._is_odd = self._trial is not None and not are_finite(mine)
            request_id, answer = self._format(mine)
            compress(answer, self._accepts)
        except Exception as failure:  # noqa: BLE001 (each becomes a status; its neighbours in the batch go on)
            self._refuse(failure)
            return
        self._finish(answer)
        if not (picked and request):
            return
        stages = self._asked - self._started, told - self._asked, perf_counter() - told
        self._engine.metrics.count_stages(self._model, picked.served.version, stages)
        if recorder and self._is_recorded:
            recorder.offer(picked, request_id, request.rows, mine, perf_counter() - self._started)
        if self._trial and self._trial.copier and picked is self._trial.stable:
            rows_for = partial(self._read_for, sent) if sent else None
            self._trial.copier.offer(request.rows, mine, perf_counter() - self._started, rows_for=rows_for)

    def failed(self, failure: Exception) -> None:
        if self.is_over:
            return
        if isinstance(failure, WorkerLost) and self._picked and (self._request or self._sent):
            second_try = self._ask_another(self._picked)
            self._second_try = asyncio.get_running_loop().create_task(second_try)
        else:
            self._refuse(failure)

    def expire(self) -> None:
        if self._second_try:
            self._second_try.cancel()
        self._refuse(TimeoutError())

    async def _ask_another(self, lost: RunningVersion) -> None:
        """The worker died over it; the router finds who answers instead."""
        try:
            self._picked, answers = await self._engine.router.infer_instead(
                lost, self._rows_for, pinned=self._version is not None
            )
        except Exception as failure:  # noqa: BLE001 (each becomes a status)
            if not self.is_over:
                self._refuse(failure)
        else:
            self.answered(answers, 0, len(answers[RAW_OUTPUTS]))

    def _rows_for(self, version: RunningVersion) -> np.ndarray:
        """The rows as another version reads them: tokens of its own tokenizer, codes of its own categories."""
        if self._sent and (self._request is None or self._sent[2].transform != version.info.transform):
            self._request = self._read(self._sent, version)
            self._sent = *self._sent[:2], version.info
        assert self._request
        return self._request.rows

    def _read_for(self, sent: Sent, version: RunningVersion) -> np.ndarray:
        return self._read(sent, version).rows

    def _read(self, sent: Sent, version: RunningVersion) -> Request:
        head, body, _ = sent
        return self._dialect.read(body, head, self._model, self._engine.disclosure.info(version.info))

    def _format(self, answers: dict[str, Tensor]) -> tuple[str, Answer]:
        picked, request = self._picked, self._request
        assert picked
        assert request
        request_id, lineage = self._engine.lineage.stamp(picked)
        disclosure = self._engine.disclosure
        info, told = disclosure.info(picked.info), disclosure.answers(answers)
        content, headers = self._dialect.write(
            told, info, request, model=self._model, version=picked.served.version, request_id=request_id
        )
        return request_id, Answer(200, content, [*headers, *lineage])

    def _refuse(self, failure: Exception) -> None:
        error = http_error(failure, self._engine.limits)
        if error.status == 500:
            logger.error("%s: an internal error", self._model, exc_info=failure)
        _, lineage = self._engine.lineage.stamp(self._picked)
        self._finish(refusal(error, lineage))

    def _finish(self, answer: Answer) -> None:
        engine, picked, reply = self._engine, self._picked, self._reply
        self.is_over = True
        self._request = self._reply = self._sent = None
        engine.num_in_flight -= 1
        # No client's invention becomes a label.
        model, version = (self._model, picked.served.version) if picked else ("", "")
        seconds = perf_counter() - self._started
        engine.metrics.count(model, version, answer.status, seconds)
        if self._trial and self._drawn:
            failed = answer.status >= 500 or answer.status == 429
            odd = self._is_odd or answer.status == 400
            self._trial.count(
                self._drawn,
                failed=failed,
                odd=odd,
                seconds=seconds,
                pair=self._pair,
                key=self._key,
                stood_in=picked is not self._drawn,
            )
        assert reply
        reply(answer)
