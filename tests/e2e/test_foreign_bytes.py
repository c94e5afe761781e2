"""Bytes that are no UTF-8, and text that a terminal would act on: in names, versions, logs, and every output."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e_support import Turnout, ask, edit, line_daemon
from support import eventually
from turnout.system.daemon_log import BOUND_BYTES, KEPT_BYTES

BYTES = b"\xff\xfe"
NAME = os.fsdecode(BYTES)
EVIL = "\x1b]0;OWN\x07\x1b[2J\r\n\x9b31m\u202e\ud800"
LOUD_AT_ITS_END = """
import os, signal, socket, sys
sock = socket.socket(); sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(sys.argv[1]))); sock.listen()
def end(*_):
    for _ in range(12): os.write(1, b"x" * (1 << 20))
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True: sock.accept()[0].close()
"""
PRINTS = """
import socket, sys
print("A\\x1b]0;OWNED\\x07\\x1b[2J\\x1b[31mB\\x9b31m\\u202eC\\r\\nend", flush=True)
sock = socket.socket(); sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(sys.argv[1]))); sock.listen()
while True: sock.accept()[0].close()
"""


def c_locale(turnout: Turnout) -> dict[str, str]:
    kept = {key: value for key, value in turnout.env.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    return kept | {"LC_ALL": "C"}


def raw(turnout: Turnout, *args: str, code: int | None = None, **more: Any) -> bytes:
    """What a verb prints, in the C locale; it must not be a traceback. ``code``: its exit code; None: any."""
    options = {"env": c_locale(turnout), "cwd": turnout.home.root.parent, **more}
    done = subprocess.run(turnout.argv(*args), capture_output=True, timeout=90, check=False, **options)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert code in {None, done.returncode}, (done.returncode, done.stderr, turnout.logs())
    printed: bytes = done.stdout
    return printed


def on_a_terminal(turnout: Turnout, *args: str, until: bytes) -> bytes:
    """What a verb writes to a terminal, until that stands there."""
    ours, theirs = pty.openpty()
    env = turnout.env | {"TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        turnout.argv(*args), stdout=theirs, stderr=theirs, stdin=theirs, env=env, cwd=turnout.home.root.parent
    )
    os.close(theirs)
    heard = b""
    try:
        while until not in heard:
            heard += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return heard


@pytest.mark.parametrize("more", [{}, {"PYTHONIOENCODING": "utf-8"}], ids=["plain", "strict"])
def test_a_daemon_gets_the_bytes_that_were_typed_and_every_verb_goes_on(
    turnout: Turnout, tmp_path: Path, more: dict[str, str]
) -> None:
    """In its command, its directory and the configuration's directory, with the C locale."""
    env = c_locale(turnout) | more
    place = tmp_path / f"place{NAME}"
    place.mkdir()
    command = line_daemon("--version", f"v{NAME}")
    toml = place / "turnout.toml"
    toml.write_text(f'[service.default]\nlisten = "127.0.0.1:{turnout.port}"\nobserve = "0s"\n')
    raw(turnout, "up", "--", *command, code=0, cwd=place, env=env)
    pid = turnout.active()["pid"]
    assert f"v{NAME}".encode(errors="surrogateescape") in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert os.fsencode(Path(f"/proc/{pid}/cwd").readlink()) == os.fsencode(place)
    raw(turnout, "deploy", "--version", f"v{NAME}", "--", *command, code=0, cwd=place, env=env)
    for verb in (("status",), ("why",), ("doctor",), ("config",), ("logs",), ("registry", "show"), ("refresh",)):
        raw(turnout, *verb, cwd=place, env=env)
    for told in ("status", "config", "history", "doctor"):
        for line in raw(turnout, told, "--json", cwd=place, env=env).decode().splitlines():  # strictly: it is UTF-8
            json.loads(line)
    pid = turnout.active()["pid"]
    assert f"v{NAME}".encode(errors="surrogateescape") in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_home_whose_name_is_no_utf8_works(turnout: Turnout, tmp_path: Path) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    other = Turnout(tmp_path / f"home{NAME}", turnout.port)
    try:
        raw(other, "up", code=0)
        assert ask(other.address) == "v1"
        for verbs in ("status", "doctor", "service install --dry-run", "status --json"):
            raw(other, *verbs.split())
    finally:
        other.end()


def test_what_another_program_calls_a_daemon_reaches_no_terminal_and_no_parser_raw(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")

    def rename(content: dict[str, Any]) -> None:
        block = content["deployment"]
        entry = dict(content["daemons"][block["active_boot_id"]], version=EVIL, owned=False, host="127.0.0.1")
        content["daemons"][f"b{EVIL}"] = entry
        content["workspaces"] = {EVIL: {"boot_id": f"b{EVIL}"}}
        block.update(active_boot_id=f"b{EVIL}", revision=block["revision"] + 1, rollback_reason=EVIL)

    edit(turnout.home.service("default").registry, rename)
    eventually(lambda: "OWN" in turnout.home.router_log.read_text(), why="the router did not follow")
    plain = ("status", "why", "history", "doctor", "registry show")
    for verb in (*plain, *(f"{one} --json" for one in plain), "status -v", "logs --router"):
        out = raw(turnout, *verb.split()).decode()
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(out), verb


@pytest.mark.parametrize("flags", [(), ("-f",)])
def test_a_log_on_a_terminal_is_spelled_out_and_in_a_pipe_it_is_as_it_is(
    turnout: Turnout, flags: tuple[str, ...]
) -> None:
    script = turnout.home.root.parent / "prints.py"
    script.write_text(PRINTS)
    turnout.run(
        "up", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s", "--", sys.executable, str(script), "{port}"
    )
    shown = on_a_terminal(turnout, "logs", *flags, until=b"end")
    assert not {b"\x1b", b"\x07", b"\xc2\x9b", b"\xe2\x80\xae"} & {
        shown[at : at + n] for n in (1, 2, 3) for at in range(len(shown))
    }
    assert rb"A\x1b]0;OWNED\x07\x1b[2J\x1b[31mB\x9b31m\u202eC" in shown
    assert b"A\x1b]0;OWNED\x07" in raw(turnout, "logs")


def test_the_log_of_a_daemon_that_ended_is_cut_at_its_bound(turnout: Turnout) -> None:
    script = turnout.home.root.parent / "loud.py"
    script.write_text(LOUD_AT_ITS_END)
    turnout.run(
        "up", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s", "--", sys.executable, str(script), "{port}"
    )
    turnout.run("refresh")
    logs = turnout.home.service("default").logs
    eventually(lambda: [p.stat().st_size for p in logs.glob("*.log.1")] == [KEPT_BYTES], why="what it kept is missing")
    eventually(lambda: all(p.stat().st_size <= BOUND_BYTES for p in logs.glob("*.log")), why="it was never cut")


def test_logs_are_followed_through_a_rename(turnout: Turnout) -> None:
    """A program that rotates logs by renaming them: the daemon writes on into the file that it has open."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    log = turnout.home.service("default").log(turnout.snapshot().deployment.active_boot_id)
    follow = turnout.begin("logs", "-f", "-n", "1")
    assert follow.stdout is not None
    assert "v1" in follow.stdout.readline()
    aside = log.rename(log.with_name("aside.log"))
    with aside.open("a") as file:
        file.write("behind the rename\n")
    assert follow.stdout.readline() == "behind the rename\n"
    log.write_text("in the new file\n")
    assert follow.stdout.readline() == "in the new file\n"
