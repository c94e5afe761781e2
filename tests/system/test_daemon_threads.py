"""Calls that may hang: they delay what is queued behind them, and never the process's end."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from support import eventually
from turnout.system import daemon_threads
from turnout.system.daemon_threads import DaemonThreads

HANGS = (
    "import threading, time\n"
    "from turnout.system.daemon_threads import DaemonThreads\n"
    "threads = DaemonThreads('hangs')\n"
    "threads.submit(threading.Event().wait)\n"
    "{then}\n"
    "print('over', flush=True)\n"
)


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """A call on a file system that hangs: it waits for this event."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("then", ["pass", "threads.shutdown(wait=True)", "threads.shutdown(cancel_futures=True)"])
def test_a_call_that_hangs_does_not_keep_the_process_from_ending(then: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", HANGS.format(then=then)], capture_output=True, timeout=60, check=True, text=True
    )
    assert done.stdout == "over\n"


def test_calls_of_one_thread_run_in_order() -> None:
    seen: list[int] = []
    threads = DaemonThreads("order")
    calls = [threads.submit(seen.append, number) for number in range(100)]
    for call in calls:
        call.result(20)
    assert seen == list(range(100))
    threads.shutdown()


def test_a_call_that_hangs_leaves_the_other_threads_at_work(hung: threading.Event) -> None:
    threads = DaemonThreads("two", 2)
    threads.submit(hung.wait)
    assert threads.submit(lambda: 7).result(20) == 7
    assert threads.submit(lambda: 8).result(20) == 8


def test_what_waits_behind_a_call_that_hangs_is_bounded(hung: threading.Event) -> None:
    threads = DaemonThreads("bounded", max_queued=3)
    taken = [threads.submit(hung.wait) for _ in range(4)]
    refused: Future[int] = threads.submit(lambda: 1)
    error = refused.exception(20)
    assert isinstance(error, OSError)
    assert error.errno == errno.EAGAIN
    hung.set()
    assert all(call.result(20) for call in taken)
    eventually(lambda: threads.submit(lambda: 1).exception(20) is None)


def test_no_thread_to_be_had_is_the_answer_of_a_call_and_no_error_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        threads = DaemonThreads("none")
        error = threads.submit(lambda: 1).exception(20)
        assert isinstance(error, OSError)
    assert threads.submit(lambda: 1).result(20) == 1


def test_with_no_further_thread_to_be_had_those_that_run_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = DaemonThreads("few", 4)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    calls = [threads.submit(int, number) for number in range(20)]
    assert [call.result(20) for call in calls] == list(range(20))


def test_what_a_call_raises_is_its_callers() -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "gone")

    threads = DaemonThreads("raises")
    assert isinstance(threads.submit(fail).exception(20), FileNotFoundError)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(fail)


def test_all_threads_are_there_before_any_call_comes() -> None:
    before = threading.active_count()
    threads = DaemonThreads("all", 3)
    assert threading.active_count() == before + 3
    threads.shutdown()
    assert threading.active_count() == before


def test_threads_that_could_not_be_had_are_started_when_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [1]

    def limited(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr(daemon_threads, "START_AGAIN_S", 0.0)
    threads = DaemonThreads("some", 2)
    assert threads.submit(int, "1").result(20) == 1
    left.append(1)  # the limit is no longer reached
    met = threading.Barrier(2)
    together = [threads.submit(met.wait, 20) for _ in range(2)]
    assert sorted(call.result(20) for call in together) == [0, 1]
    threads.shutdown()


def test_cancelled_calls_do_not_run(hung: threading.Event) -> None:
    threads, done = DaemonThreads("cancelled"), list[int]()
    first = threads.submit(hung.wait, 20)
    eventually(first.running)
    second = threads.submit(done.append, 1)
    threads.shutdown(wait=False, cancel_futures=True)
    hung.set()
    threads.shutdown()
    assert second.cancelled()
    assert done == []
