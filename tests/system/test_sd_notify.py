"""The words to a service manager, over real datagram sockets."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from turnout.system.sd_notify import notify


@pytest.fixture(params=["path", "abstract"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@turnout-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")


def test_the_manager_gets_all_assignments_in_one_datagram(name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind("\0" + name[1:] if name.startswith("@") else name)
        assert notify("READY=1", "MAINPID=7", "STATUS=two\nlines", environ={"NOTIFY_SOCKET": name})
        assert manager.recv(4096) == b"READY=1\nMAINPID=7\nSTATUS=two lines"


@pytest.mark.parametrize("name", ["", "relative", "/nobody/listens/here", "@nobody-listens-here"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    assert not notify("READY=1", environ={"NOTIFY_SOCKET": name} if name else {})
