"""The demonstration: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import eventually

DEMO = [sys.executable, "-P", "-m", "turnout", "demo"]


def _env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path)}


def _left_over(tmp_path: Path) -> list[str]:
    """Files, and processes that know the directory."""
    files = [str(path) for path in (tmp_path / "tmp").iterdir()]
    return files + _processes(str(tmp_path))


def _processes(needle: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if needle in line:
            found.append(line)
    return found


@pytest.mark.parametrize("daemon", ["line", "redis"])
def test_the_demonstration_fails_no_connection_shows_the_rollback_and_leaves_nothing(
    tmp_path: Path, daemon: str, request: pytest.FixtureRequest
) -> None:
    if daemon == "redis":
        request.getfixturevalue("redis")
    done = subprocess.run(
        [*DEMO, "--daemon", daemon], env=_env(tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^failed +0$", done.stdout, re.MULTILINE), done.stdout
    assert "rolled back" in done.stdout
    for version in ("v1", "v2", "v3"):
        assert re.search(rf"answered by.*\b{version} [1-9]", done.stdout), done.stdout
    eventually(lambda: _left_over(tmp_path) == [], why="something is left behind")


def test_ctrl_c_leaves_nothing_either(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        DEMO, env=_env(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stderr is not None
    said = ""
    while "deploying v2" not in said:
        line = demo.stderr.readline()
        assert line, said
        said += line
    os.killpg(demo.pid, signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    eventually(lambda: _left_over(tmp_path) == [], why="something is left behind")


def test_the_demonstration_draws_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        env = _env(tmp_path) | {"TERM": "xterm-256color"}
        demo = subprocess.Popen(DEMO, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    finally:
        os.close(theirs)
    drawn = b""
    try:
        while b" connections " not in drawn:
            drawn += os.read(ours, 65536)
        demo.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other end is closed, pty(7)
            while more := os.read(ours, 65536):
                drawn += more
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.wait()
        os.close(ours)
    assert b"\\x1b" not in drawn, "no movement of the cursor is spelled out"
    assert b"\x1b[" in drawn
