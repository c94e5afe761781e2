"""The environment that keeper and router were started from is removed, or replaced by another, while they run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, edit, line_daemon
from support import eventually
from turnout.testing import free_port

# In each keeper and router: whatever is imported from when its main() runs on is written to a file, but for what it
# imports ahead, and the metrics library, which is imported whole when the metrics address is opened.
RECORDS_IMPORTS = """
import os, sys, threading
words = sys.orig_argv
kind = next((word for word in words if word in ("turnout.keeper", "turnout.router")), "")
if kind and words[words.index(kind) - 1] == "-m":
    def hook(event, args):
        if event != "import":
            return
        frame = sys._getframe()
        inside, allowed = threading.current_thread() is not threading.main_thread(), False
        while frame:
            name, file = frame.f_code.co_name, frame.f_code.co_filename
            inside |= name == "main" and file.endswith(("turnout/keeper/__main__.py", "turnout/router/__main__.py"))
            allowed |= name in ("preload", "load_library")
            frame = frame.f_back
        if inside and not allowed:
            fd = os.open(os.environ["IMPORTS_GO_TO"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(fd, f"{kind} {args[0]}\\n".encode())
            os.close(fd)
    sys.addaudithook(hook)
"""


def test_a_router_and_a_keeper_import_nothing_once_they_serve(
    turnout: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death and a restart, a foreign write, a rollout, another service, a new router, metrics, and the end."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(RECORDS_IMPORTS)
    imports = tmp_path / "imports"
    imports.touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    monkeypatch.setenv("IMPORTS_GO_TO", str(imports))
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    metrics = free_port()
    turnout.run("up", "--metrics", f"127.0.0.1:{metrics}")
    with socket.create_connection(("127.0.0.1", metrics), 20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert sock.makefile().readline().startswith("HTTP/1.1 200")
    first = turnout.active()
    edit(turnout.home.service("default").registry, lambda raw: raw["daemons"][first["boot_id"]].update(theirs=1))
    turnout.kill(first["pid"])
    eventually(lambda: another_is_active(turnout, first["pid"]), timeout_s=60)
    eventually(lambda: ask(turnout.address) == "v1", timeout_s=60)
    turnout.run("refresh")
    turnout.run(
        "up", "--service", "other", "--listen", f"127.0.0.1:{free_port()}", "--", *line_daemon("--version", "o")
    )
    turnout.run("down", "--service", "other")
    turnout.run("router", "--replace")
    assert ask(turnout.address) == "v1"
    turnout.run("down")
    assert sorted(set(imports.read_text().splitlines())) == []


def another_is_active(turnout: Turnout, pid: int) -> bool:
    active = turnout.snapshot().active
    return active is not None and active.pid != pid


def through_a_link(turnout: Turnout, link: Path, *words: str) -> None:
    """Run a verb with the interpreter under another name, which keeper and router are then started with."""
    link.symlink_to(os.path.realpath(sys.executable))
    env = turnout.env | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(
        [str(link), "-P", "-m", "turnout", *words],
        cwd=link.parent,
        env=env,
        check=True,
        capture_output=True,
        timeout=90,
    )


def test_replace_says_that_there_is_no_interpreter_and_up_brings_another(turnout: Turnout, tmp_path: Path) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    link = tmp_path / "gone"
    through_a_link(turnout, link, "up")
    router = turnout.router_pid()
    link.unlink()
    said = turnout.run("router", "--replace", code=1).stderr
    assert str(link) in said
    assert f"router {router} goes on" in said
    assert turnout.router_pid() == router
    turnout.run("up")  # what the hint says
    turnout.run("router", "--replace")
    eventually(lambda: turnout.router_pid() not in {0, router})
    assert ask(turnout.address) == "v1"


def test_clients_wait_while_no_router_can_be_started_and_are_served_after_up(turnout: Turnout, tmp_path: Path) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    link = tmp_path / "gone"
    through_a_link(turnout, link, "up")
    link.unlink()
    turnout.kill(turnout.router_pid())
    eventually(lambda: "is gone" in turnout.home.keeper_log.read_text(), why="the keeper does not say so")
    with socket.create_connection(turnout.address, 60) as client:
        client.sendall(b"question\n")
        turnout.run("up")
        assert client.makefile().readline().startswith("v1 ")


def test_a_daemon_that_dies_is_started_again_by_the_interpreter_of_the_last_verb(
    turnout: Turnout, tmp_path: Path
) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    link = tmp_path / "gone"
    through_a_link(turnout, link, "up")
    link.unlink()
    turnout.run("up")
    dead = turnout.active()["pid"]
    turnout.kill(dead)
    eventually(lambda: another_is_active(turnout, dead), timeout_s=60)
    assert ask(turnout.address) == "v1"
