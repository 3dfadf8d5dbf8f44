"""Blocking calls beside the event loop, on threads that never hold up the end of the process.

`asyncio.to_thread` would: the interpreter joins its threads at exit, and a store that is away answers late.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a blocking function on a daemon thread of its own."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, failure: BaseException | None) -> None:
        if outcome.done():
            return
        if failure:
            outcome.set_exception(failure)
        else:
            outcome.set_result(result)  # ty: ignore[invalid-argument-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = function(*arguments)
        except BaseException as raised:  # noqa: BLE001 (it is raised again where it is awaited)
            failure = raised
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile, and nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True, name=getattr(function, "__name__", "call")).start()
    return await outcome
