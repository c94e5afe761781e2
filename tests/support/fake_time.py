"""A loop whose clock is not the machine's, and an executor that takes no time on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class SkippingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer as soon as nothing is ready: hours pass in milliseconds.

    It stands still otherwise: what a busy machine takes longer for is no time here, and no timer is late.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = super().time()
        """A test may set it on, as a machine that stalls does."""

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        scheduled = [handle for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        if not self._ready and scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, min(handle.when() for handle in scheduled))
        super()._run_once()  # type: ignore[misc]


class AtOnce(Executor):
    """Runs each call where it is submitted; ``error`` is what submitting ends with."""

    def __init__(self) -> None:
        self.error: OSError | None = None

    def submit(self, call: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        if self.error:
            raise self.error
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **more))
        except Exception as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future
