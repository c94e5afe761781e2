"""Real processes that wait on a listener in every way that there is, and some that do not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from process_support import Started, line_of
from support import eventually
from turnout.core.acceptors import Waited
from turnout.system.net import acceptors as module
from turnout.system.net.acceptors import waited_on

PRELUDE = (
    "import os, select, socket, threading, time\n"
    "sock = socket.create_server(('127.0.0.1', 0))\n"
    "def said(): print(os.fstat(sock.fileno()).st_ino, flush=True)\n"
)
WAITING = {
    "accept": "said(); sock.accept()",
    "accept with a time-out": "sock.settimeout(600); said(); sock.accept()",
    "accept in a thread": "threading.Thread(target=sock.accept).start(); said(); time.sleep(600)",
    "poll": "p = select.poll(); p.register(sock, select.POLLIN); said(); p.poll()",
    "select": "said(); select.select([sock], [], [])",
    "epoll": "p = select.epoll(); p.register(sock, select.EPOLLIN); said(); time.sleep(600)",
    "epoll of a worker": (
        "said()\nif os.fork() == 0:\n p = select.epoll(); p.register(sock, select.EPOLLIN); p.poll()\nelse: os.wait()"
    ),
    "accept in a worker": "said()\nif os.fork() == 0: sock.accept()\nelse: os.wait()",
}
NOT_WAITING = {
    "asleep": "said(); time.sleep(600)",
    "in accept on another listener": "other = socket.create_server(('127.0.0.1', 0)); said(); other.accept()",
    "polls for output": "p = select.poll(); p.register(sock, select.POLLERR); said(); p.poll()",
    "epoll without events": "p = select.epoll(); p.register(sock, 0); said(); p.poll()",
    "busy": "said()\nwhile True: pass",
}


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


def run(started: Started, code: str) -> tuple[subprocess.Popen[bytes], int]:
    child = started.python(PRELUDE + code)
    return child, int(line_of(child))


def tree(child: subprocess.Popen[bytes]) -> set[int]:
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as children:  # noqa: PTH123
        return {child.pid, *map(int, children.read().split())}


@pytest.mark.parametrize("how", WAITING)
def test_a_process_that_waits_on_its_listener_is_seen_to(started: Started, how: str) -> None:
    child, inode = run(started, WAITING[how])
    eventually(lambda: waited_on({inode}, tree(child)) is Waited.YES)


@pytest.mark.parametrize("how", NOT_WAITING)
def test_a_process_that_only_listens_is_not_taken_for_one_that_waits(started: Started, how: str) -> None:
    child, inode = run(started, NOT_WAITING[how])
    eventually(lambda: waited_on({inode}, tree(child)) is Waited.NO)
    assert all(waited_on({inode}, tree(child)) is Waited.NO for _ in range(5))


def test_of_a_parent_and_a_worker_that_waits_only_the_worker_waits(started: Started) -> None:
    """A listener that was inherited proves nothing of the process that inherited it."""
    child, inode = run(started, WAITING["accept in a worker"])
    worker = eventually(lambda: tree(child) - {child.pid})
    assert isinstance(worker, set)
    eventually(lambda: waited_on({inode}, worker) is Waited.YES)
    assert waited_on({inode}, {child.pid}) is Waited.NO


@pytest.mark.parametrize(
    ("how", "expected"),
    [("accept", Waited.YES), ("poll", Waited.UNKNOWN), ("epoll", Waited.YES), ("asleep", Waited.NO)],
)
def test_where_a_process_may_not_be_traced_the_function_that_it_sleeps_in_has_to_do(
    started: Started, monkeypatch: pytest.MonkeyPatch, how: str, expected: Waited
) -> None:
    """Yama forbids to read the system call, and not /proc/PID/wchan."""
    child, inode = run(started, (WAITING | NOT_WAITING)[how])
    eventually(lambda: waited_on({inode}, tree(child)) is (Waited.NO if how == "asleep" else Waited.YES))
    read = module._read
    monkeypatch.setattr(module, "_read", lambda path: None if path.endswith("/syscall") else read(path))
    assert waited_on({inode}, tree(child)) is expected


def test_where_nothing_may_be_looked_at_it_is_unknown(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    child, inode = run(started, WAITING["accept"])

    def refuse(_: int) -> Iterator[tuple[int, str]]:
        raise PermissionError

    monkeypatch.setattr(module, "_descriptors", refuse)
    assert waited_on({inode}, tree(child)) is Waited.UNKNOWN


def test_a_ring_with_a_pending_accept_is_seen_from_its_fdinfo() -> None:
    assert module._RING_ACCEPT in "PollList:\n  op=13, task_works=0\nCqOverflowList:\n"


def test_an_epoll_set_of_an_old_kernel_is_read_by_its_descriptors() -> None:
    """Before Linux 4.13 a line has no inode."""
    line = "tfd:        3 events:       19 data:                3\n"
    assert module._watched(line, {3: 4711}) == {4711}
    assert module._watched(f"{line.rstrip()}  pos:0 ino:1f sdev:9\n", {3: 4711}) == {31}
    assert module._watched("tfd:        3 events: 40000000 data:                3\n", {3: 4711}) == set()
