"""Bulk bytes never enter the router: seen from outside, by the system calls that it makes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from bulk_daemon import expected, pump_out, take_in
from e2e_support import Turnout
from programs import missing, program
from support import eventually, report, scaled
from traffic import read_exactly

SUPPORT = Path(__file__).parents[1] / "support"
# every call by which bytes of a socket or a pipe can come into user space, and the one by which they do not
INTO_USER_SPACE = ("read", "readv", "pread64", "preadv", "recvfrom", "recvmsg", "recvmmsg")
TRACED = (*INTO_USER_SPACE, "splice")
CALL = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?:\(| resumed>).*\) += (\d+)$")


def bytes_of(trace: str) -> Counter[str]:
    """What each system call moved, from the lines of strace -f."""
    moved: Counter[str] = Counter()
    for line in trace.splitlines():
        found = CALL.match(line)
        if found:
            moved[found[1]] += int(found[2])
    return moved


def test_a_trace_is_read_as_strace_writes_it() -> None:
    trace = """\
71 recvfrom(9, ""..., 65536, 0, NULL, NULL) = 65536
71 splice(9, NULL, 12, NULL, 1048576, SPLICE_F_MOVE|SPLICE_F_NONBLOCK) = 1048576
72 splice(9, NULL, 12, NULL, 1048576, SPLICE_F_MOVE|SPLICE_F_NONBLOCK <unfinished ...>
71 recvfrom(9, 0x7f, 65536, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
72 <... splice resumed>)              = 10
71 --- SIGCHLD {si_signo=SIGCHLD} ---
"""
    assert bytes_of(trace) == {"recvfrom": 65536, "splice": 1048586}


@pytest.mark.timeout(900)
def test_in_a_bulk_transfer_the_router_receives_less_than_one_percent_into_user_space(
    turnout: Turnout, tmp_path: Path
) -> None:
    strace = program("strace", package="strace")
    size = scaled(64, 1024) << 20
    turnout.configure([sys.executable, "-P", str(SUPPORT / "bulk_daemon.py"), "{port}"], deadline="none")
    turnout.run("up")
    trace = tmp_path / "trace"
    argv = [strace, "-f", "-qq", "-s0", "-e", f"trace={','.join(TRACED)}", "-e", "signal=none", "-o", str(trace)]
    watching = subprocess.Popen(
        [*argv, "-p", str(turnout.router_pid())], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _is_traced(turnout.router_pid(), watching)
        with socket.create_connection(turnout.address, 60) as sock:
            sock.sendall(size.to_bytes(8, "big"))
            out = threading.Thread(target=pump_out, args=(sock, size))
            out.start()
            came = take_in(sock, size)
            out.join(600)
            theirs = read_exactly(sock, 32)
    finally:
        watching.send_signal(signal.SIGINT)  # it detaches, and the router goes on
        watching.communicate(timeout=60)
    assert (came, theirs) == (expected(size), expected(size))
    moved = bytes_of(trace.read_text())
    entered = sum(moved[call] for call in INTO_USER_SPACE)
    payload = 2 * size
    report("zero-copy", payload=payload, into_user_space=entered, spliced=moved["splice"], share=entered / payload)
    assert moved["splice"] >= 2 * payload * 0.99, "each byte is spliced into a pipe and out of it"
    assert 0 < entered < payload * 0.01


def _is_traced(pid: int, watching: subprocess.Popen[str]) -> None:
    """Wait until every thread has a tracer (proc(5), status); skip where the system does not let us."""

    def traced() -> bool:
        if watching.poll() is not None:
            assert watching.stderr
            missing("strace", f"strace may not attach here: {watching.stderr.read().strip()}")
        try:
            states = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        except FileNotFoundError:  # a thread that has ended meanwhile
            return False
        return all(f"TracerPid:\t{watching.pid}\n" in state for state in states)

    eventually(traced, why="strace does not attach")
