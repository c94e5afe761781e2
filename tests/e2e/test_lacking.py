"""Where the machine lacks what a direct plane needs: clients are served all the same, and doctor says why not better.

The lack is real to all that the command starts: a filter of seccomp(2) answers the calls with the error that an old
kernel or a container gives.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from direct_support import needs_sk_lookup, router
from e2e_support import Turnout, line_daemon, under_load
from programs import program
from support import eventually

SUPPORT = Path(__file__).parents[1] / "support"
GIVEN = [sys.executable, "-P", str(SUPPORT / "fd_daemon.py"), "{version}", "--fd", "{{fd}}"]
# at its start Python imports a module of this name: the relay's needs are not there then
WITHOUT_SPLICE = """
import os, select
for name in ("splice", "SPLICE_F_MOVE", "SPLICE_F_NONBLOCK", "SPLICE_F_MORE"):
    delattr(os, name)
del select.epoll
"""


@pytest.fixture
def without(turnout: Turnout, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Turnout]:
    """The command with a system call that fails, for all that it starts."""
    argv = turnout.argv

    def make(call: str, code: int) -> Turnout:
        filtered = [sys.executable, "-P", str(SUPPORT / "without_call.py"), call, str(code)]
        monkeypatch.setattr(turnout, "argv", lambda *args: [*filtered, *argv(*args)])
        return turnout

    return make


def serves(turnout: Turnout, configure: Callable[[str], None]) -> str:
    """It serves, and a deploy under load fails nobody, all of it through the router; answers what doctor says then."""
    configure("v1")
    turnout.run("up")
    with under_load(turnout) as load:
        configure("v2")
        turnout.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
    assert turnout.status()["counters"]["accepted"] > 0
    told = turnout.run("doctor", "-v", code=None).stdout
    assert turnout.run("down").returncode == 0
    return told


def steers(turnout: Turnout) -> Callable[[str], None]:
    def configure(version: str) -> None:
        turnout.configure(line_daemon("--version", version), version=version, observe="200ms")
        turnout.tune(plane='"sk_lookup"')

    return configure


def test_a_kernel_without_sk_lookup_relays_and_doctor_names_the_kernel_it_takes(
    without: Callable[[str, int], Turnout],
) -> None:
    turnout = without("bpf", errno.ENOSYS)
    told = serves(turnout, steers(turnout))
    assert "plane sk_lookup relays here: cannot make a map: Function not implemented" in told
    assert "it takes Linux 5.9" in told


def test_a_container_that_forbids_bpf_relays_and_doctor_names_the_filter(
    without: Callable[[str, int], Turnout],
) -> None:
    needs_sk_lookup()
    turnout = without("bpf", errno.EPERM)
    told = serves(turnout, steers(turnout))
    assert "plane sk_lookup relays here: cannot make a map: Operation not permitted" in told
    assert "the rights are there, so the seccomp filter that is in force forbids it" in told


def test_a_container_that_forbids_to_take_a_listener_relays_and_doctor_says_so(
    without: Callable[[str, int], Turnout],
) -> None:
    needs_sk_lookup()
    turnout = without("pidfd_getfd", errno.EPERM)
    told = serves(turnout, steers(turnout))
    assert "plane sk_lookup relays at the moment: process" in told
    assert "may not be traced, so its listener cannot be had" in told


def test_without_a_bpf_filesystem_the_kernel_steers_and_doctor_says_for_how_long(
    turnout: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own is taken away in a mount namespace, for whatever the command starts."""
    needs_sk_lookup()
    argv = turnout.argv
    away = [program("unshare", package="util-linux"), "--mount", "sh", "-c", 'umount -lat bpf; exec "$@"', "sh"]
    monkeypatch.setattr(turnout, "argv", lambda *args: [*away, *argv(*args)])
    configure = steers(turnout)
    configure("v1")
    turnout.run("up")
    with under_load(turnout) as load:
        configure("v2")
        turnout.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
    assert turnout.status()["counters"]["accepted"] == 0
    told = turnout.run("doctor", code=None).stdout
    assert "no bpf filesystem is mounted, so the kernel steers for as long as the router lives and no longer" in told


@pytest.mark.parametrize("plane", ["auto", "reuseport"])
def test_a_kernel_that_does_not_choose_in_a_group_relays_whether_the_plane_was_named_or_not(
    without: Callable[[str, int], Turnout], plane: str
) -> None:
    turnout = without("attach", errno.ENOPROTOOPT)

    def configure(version: str) -> None:
        argv = [part.format(version=version) for part in GIVEN]
        turnout.configure(argv, version=version, observe="200ms")
        turnout.tune(plane=f'"{plane}"')

    told = serves(turnout, configure)
    assert "reuseport does not work here: a group of listeners cannot be made: Protocol not available" in told
    if plane == "reuseport":
        assert "plane reuseport relays here: a group of listeners cannot be made" in told


def test_a_system_without_splice_and_epoll_is_served_by_streams_and_doctor_says_why(
    turnout: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text(WITHOUT_SPLICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))

    def configure(version: str) -> None:
        turnout.configure(line_daemon("--version", version), version=version, observe="200ms")

    told = serves(turnout, configure)
    assert "stream carries the bytes; no splice(2) here: every byte is copied" in told
    assert "no epoll(7) and splice(2) here, which the relay needs" in told
    configure("v3")
    turnout.run("up")
    assert router(turnout)["plane"] == "stream"
