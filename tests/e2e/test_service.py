"""turnout under a service manager: the unit it prints, and the words that it says to one that listens."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.system.process import identify, is_alive


def test_install_prints_writes_and_removes_a_unit(turnout: Turnout) -> None:
    turnout.run("service", "install", "--dry-run", code=4)
    turnout.configure(line_daemon("--version", "v1"))
    unit = Path(turnout.env["XDG_CONFIG_HOME"]) / "systemd" / "user" / "turnout.service"
    printed = turnout.run("service", "install", "--dry-run")
    assert not unit.exists()
    assert str(unit) in printed.stderr
    assert f'"TURNOUT_HOME={turnout.home.root}"' in printed.stdout
    assert "enable --now turnout.service" in turnout.run("service", "install").stdout
    assert unit.read_text() == printed.stdout
    assert str(unit) in turnout.run("service", "uninstall", "--dry-run").stdout
    assert unit.exists()
    turnout.run("service", "uninstall")
    assert not unit.exists()
    turnout.run("service", "uninstall", code=4)
    assert "User=" in turnout.run("service", "install", "--system", "--run-as", "nobody", "--dry-run").stdout


def test_a_unit_of_another_user_names_that_users_state_directory(turnout: Turnout) -> None:
    """Root's own, which `sudo turnout service install` would name, is closed to it."""
    turnout.configure(line_daemon("--version", "v1"))
    unnamed = {key: value for key, value in turnout.env.items() if key != "TURNOUT_HOME"}
    asked = ("service", "install", "--system", "--dry-run", "--run-as")
    other = next(one for one in pwd.getpwall() if one.pw_uid not in {0, os.geteuid()})
    printed = turnout.run(*asked, other.pw_name, env=unnamed).stdout
    assert f'"TURNOUT_HOME={other.pw_dir}/.local/state/turnout"' in printed
    assert f'"TURNOUT_HOME={turnout.home.root}"' in turnout.run(*asked, other.pw_name).stdout, "what is named is named"
    own = pwd.getpwuid(os.geteuid())
    elsewhere = unnamed | {"XDG_STATE_HOME": str(turnout.home.root)}
    assert f'"TURNOUT_HOME={turnout.home.root}/turnout"' in turnout.run(*asked, own.pw_name, env=elsewhere).stdout
    assert "no user 'nobody-here'" in turnout.run(*asked, "nobody-here", env=unnamed, code=2).stderr


def test_up_tells_the_manager_that_it_is_ready_and_which_process_to_watch(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    path = turnout.home.root.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(str(path))
        turnout.run("up", env=turnout.env | {"NOTIFY_SOCKET": str(path)})
        words = manager.recv(4096).decode().splitlines()
        keeper = identify(turnout.keeper_pid())
        assert words[:2] == ["READY=1", f"MAINPID={keeper.pid}"]
        environ = Path(f"/proc/{turnout.active()['pid']}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environ, "what the manager said to us is not the daemon's business"
        turnout.kill(keeper.pid, 15)
        assert manager.recv(4096) == b"STOPPING=1"
        eventually(lambda: not is_alive(keeper), timeout_s=60)


def test_the_foreground_keeper_tells_it_too(turnout: Turnout) -> None:
    turnout.home.create()
    path = turnout.home.root.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(str(path))
        keeper = turnout.begin("router", env=turnout.env | {"NOTIFY_SOCKET": str(path)})
        assert f"MAINPID={keeper.pid}" in manager.recv(4096).decode().splitlines()


def test_a_manager_that_restarts_a_killed_keeper_finds_the_daemon_as_it_was(turnout: Turnout) -> None:
    """What systemd does with KillMode=process and Restart=on-failure: only the keeper dies, and `up` runs again."""
    turnout.configure(line_daemon("--version", "v1"))
    path = turnout.home.root.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(str(path))
        env = turnout.env | {"NOTIFY_SOCKET": str(path)}
        turnout.run("up", env=env)
        manager.recv(4096)
        daemon = turnout.active()["pid"]
        with socket.create_connection(turnout.address, 20) as lasting:
            lines = lasting.makefile("rw")
            keeper = identify(turnout.keeper_pid())
            turnout.kill(keeper.pid)
            eventually(lambda: not is_alive(keeper))
            turnout.run("up", env=env)
            assert f"MAINPID={turnout.keeper_pid()}" in manager.recv(4096).decode().splitlines()
            lines.write("hello\n")
            lines.flush()
            assert lines.readline().startswith("v1 ")
    assert turnout.active()["pid"] == daemon
    assert ask(turnout.address) == "v1"
