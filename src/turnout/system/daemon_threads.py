"""Runs calls that may never return, such as stat(2) on a network file system whose server is gone.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
END_S: Final = 2.0
START_AGAIN_S: Final = 1.0  # between two attempts to start the threads that could not be had
MAX_QUEUED: Final = 4096
_Job = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads(Executor):
    """An executor of daemon threads: a call that hangs delays what is queued behind it, and never the process's exit.

    The threads of :mod:`concurrent.futures` and of asyncio's default executor are joined when the interpreter exits.
    All threads are started at once, since later the limit on processes may be reached; those that could not be
    started are tried again when calls come. A call that cannot be queued fails with OSError (EAGAIN), as its future's
    result: callers treat that like a file that cannot be read.

    Args:
        name: of the threads, for debuggers.
        count: number of threads (>= 1).
        max_queued: maximum number of calls that wait for a thread (>= 0).
    """

    def __init__(self, name: str, count: int = 1, *, max_queued: int = MAX_QUEUED) -> None:
        self._name = name
        self._count = count
        self._max_queued = max_queued
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0  # calls that run or are queued
        self._closed = False
        self._tried_at = 0.0
        self._start_missing()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queue a call. Raises RuntimeError after :meth:`shutdown`."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the threads {self._name} are shut down")
            if len(self._threads) < self._count and (
                not self._threads or time.monotonic() - self._tried_at >= START_AGAIN_S
            ):
                self._start_missing()
            room = self._max_queued + len(self._threads)
            if not self._threads or self._unfinished >= room:
                why = "no thread can be started" if not self._threads else "too many calls wait for a thread"
                future.set_exception(OSError(errno.EAGAIN, why))
                return future
            self._unfinished += 1
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    @property
    def works(self) -> bool:
        """Whether a thread runs; where none does, one is tried again at most once in a second."""
        with self._lock:
            if not self._threads and not self._closed and time.monotonic() - self._tried_at >= START_AGAIN_S:
                self._start_missing()
            return bool(self._threads)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls. ``wait``: for the queued ones, for two seconds at most."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                with contextlib.suppress(Empty):
                    while job := self._jobs.get_nowait():
                        job[0].cancel()
            for _ in self._threads:
                self._jobs.put(None)
        if wait:
            until = time.monotonic() + END_S
            for thread in self._threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _start_missing(self) -> None:
        self._tried_at = time.monotonic()
        for number in range(len(self._threads), self._count):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError):  # pthread_create(3), EAGAIN: those that run do the work
                return
            self._threads.append(thread)

    def _work(self) -> None:
        while job := self._jobs.get():
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001  # the future raises it in the caller
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del job, future, call
            with self._lock:
                self._unfinished -= 1
