"""Big transfers in both directions at once, across a switch, compared by hash at both ends."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from bulk_daemon import expected, pump_out, take_in
from e2e_support import Turnout
from support import eventually, report, scaled
from traffic import read_exactly


@pytest.mark.timeout(900)
def test_a_large_payload_in_both_directions_survives_a_switch_byte_for_byte(turnout: Turnout) -> None:
    size = scaled(64, 1024) << 20
    daemon = str(Path(__file__).parents[1] / "support" / "bulk_daemon.py")
    turnout.configure([sys.executable, "-P", daemon, "{port}"], version="v1", deadline="none")
    turnout.run("up")
    old = turnout.active()
    with socket.create_connection(turnout.address, 60) as sock:
        sock.sendall(size.to_bytes(8, "big"))
        half = threading.Event()
        out = threading.Thread(target=_send, args=(sock, size, half))
        digests: list[bytes] = []
        back = threading.Thread(target=lambda: digests.append(take_in(sock, size)))
        out.start()
        back.start()
        assert half.wait(120)
        turnout.run("deploy", "--version", "v2", "--detach")
        out.join(600)
        back.join(600)
        theirs = read_exactly(sock, 32)
        counted = next(d for d in turnout.status()["daemons"] if d["boot_id"] == old["boot_id"])
    assert digests == [expected(size)], "what came to us"
    assert theirs == expected(size), "what came to the daemon"
    assert turnout.active()["version"] == "v2"
    assert (counted["bytes_in"], counted["bytes_out"]) == (size + 8, size + 32)
    eventually(lambda: old["boot_id"] not in turnout.daemons())
    report("payload in each direction across a switch", bytes=size, equal=True)


def _send(sock: socket.socket, size: int, half: threading.Event) -> None:
    """Send everything; say when a first part is through, so that the switch falls into the middle."""
    first = min(size // 8, 8 << 20)
    pump_out(sock, first)
    half.set()
    pump_out(sock, size, start=first)
