from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from process_support import Started, line_of, open_descriptors
from support import eventually
from turnout.core.model import Identity
from turnout.system import process
from turnout.system.process import (
    ProcessHandle,
    command_of,
    descendants,
    identify,
    is_alive,
    own_identity,
    provably_dead,
    state_of,
    tree_of,
)

OTHER_BOOT = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


@pytest.fixture
def sleeper(started: Started) -> subprocess.Popen[bytes]:
    return started.run("sleep", "600")


def test_a_running_process_is_alive_and_not_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    assert identity.start_ticks > 0
    assert is_alive(identity)
    assert not provably_dead(identity)


def test_our_own_identity_is_that_of_our_pid() -> None:
    assert own_identity() == identify(os.getpid())
    assert is_alive(own_identity())


def test_a_pid_that_was_reused_is_dead_for_who_had_it_before(sleeper: subprocess.Popen[bytes]) -> None:
    before = replace(identify(sleeper.pid), start_ticks=identify(sleeper.pid).start_ticks - 1)
    assert not is_alive(before)
    assert provably_dead(before)


def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    sleeper.kill()
    eventually(lambda: state_of(sleeper.pid) == "Z")
    assert not is_alive(identity)
    assert provably_dead(identity)


def test_a_process_that_was_waited_for_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not is_alive(identity)
    assert provably_dead(identity)
    with pytest.raises(ProcessLookupError):
        identify(sleeper.pid)
    with pytest.raises(ProcessLookupError):
        state_of(sleeper.pid)


def test_a_process_whose_first_thread_has_ended_is_alive(started: Started) -> None:
    number = {"x86_64": 60, "aarch64": 93}.get(platform.machine())
    if number is None:
        pytest.skip("the number of exit(2) is not known for this machine")
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('there', flush=True)\n"
        f"ctypes.CDLL(None).syscall({number}, 0)\n"
    )
    child = started.python(code)
    line_of(child)
    identity = identify(child.pid)
    eventually(lambda: state_of(child.pid) == "Z")
    assert is_alive(identity)
    assert not provably_dead(identity)


def test_a_process_of_an_earlier_boot_is_dead_even_if_its_pid_is_in_use() -> None:
    identity = replace(own_identity(), machine_boot_id=OTHER_BOOT)
    assert not is_alive(identity)
    assert provably_dead(identity)


def test_a_process_of_another_pid_namespace_is_neither_alive_nor_provably_dead() -> None:
    identity = replace(own_identity(), pid_ns=own_identity().pid_ns + 1)
    assert not is_alive(identity)
    assert not provably_dead(identity)


@pytest.mark.parametrize("pid", [0, -1, -os.getpid()], ids=["none", "all", "a group"])
def test_no_pid_is_neither_alive_nor_provably_dead(pid: int) -> None:
    assert not is_alive(Identity(pid))
    assert not provably_dead(Identity(pid))
    with pytest.raises(ProcessLookupError):
        identify(pid)
    with pytest.raises(ProcessLookupError):
        ProcessHandle.open(Identity(pid))


def test_an_absurd_pid_is_dead() -> None:
    identity = replace(own_identity(), pid=2**70)
    assert not is_alive(identity)
    assert provably_dead(identity)
    with pytest.raises(ProcessLookupError):
        ProcessHandle.open(identity)


def test_without_start_ticks_the_pid_has_to_do(sleeper: subprocess.Popen[bytes]) -> None:
    foreign = Identity(sleeper.pid)
    assert is_alive(foreign)
    assert not provably_dead(foreign)
    sleeper.kill()
    eventually(lambda: state_of(sleeper.pid) == "Z")
    assert not is_alive(foreign)
    sleeper.wait()
    assert provably_dead(foreign)


def test_a_process_that_may_not_be_signalled_is_alive() -> None:
    code = (
        "import os, sys\n"
        "from turnout.core.model import Identity\n"
        "from turnout.system import process\n"
        "process._PROC = '/nowhere'\n"
        "if os.getuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "assert process.identify(1) == Identity(1)\n"
        "assert process.is_alive(Identity(1)) and not process.provably_dead(Identity(1))\n"
        "try: process.identify(2 ** 22 + 1)\n"
        "except ProcessLookupError: print('well')\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "well\n"


@pytest.mark.parametrize("name", ["a) R 1 (b", ") Z 1", "x y z", "(((", ")))"])
def test_a_command_name_with_brackets_and_blanks_changes_nothing(started: Started, name: str) -> None:
    code = (
        "import sys, time\n"
        "open('/proc/self/comm', 'w').write(sys.argv[1])\n"
        "print('named', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = started.python(code, name)
    line_of(child)
    eventually(lambda: state_of(child.pid) == "S")
    assert is_alive(identify(child.pid))
    assert child.pid in descendants(os.getpid())


def test_a_stopped_process_says_so(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    eventually(lambda: state_of(sleeper.pid) == "T")
    assert is_alive(identify(sleeper.pid))


# -- handles -----------------------------------------------------------------------------------------------------------


def test_a_handle_signals_its_process_and_sees_it_end(sleeper: subprocess.Popen[bytes]) -> None:
    with ProcessHandle.open(identify(sleeper.pid)) as handle:
        assert not handle.wait(0)
        handle.signal(signal.SIGTERM)
        assert handle.wait(20)
        assert sleeper.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            handle.signal(signal.SIGTERM)


def test_a_handle_of_a_reused_pid_is_refused_and_leaks_no_descriptor(sleeper: subprocess.Popen[bytes]) -> None:
    real = identify(sleeper.pid)
    before = open_descriptors()
    for wrong in (
        replace(real, start_ticks=real.start_ticks + 1),
        replace(real, start_ticks=0),
        replace(real, machine_boot_id=OTHER_BOOT),
        replace(real, pid_ns=1),
    ):
        with pytest.raises(ProcessLookupError):
            ProcessHandle.open(wrong)
    assert open_descriptors() == before
    assert sleeper.poll() is None


def test_a_handle_that_cannot_be_proven_for_want_of_a_descriptor_costs_none(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    identity = identify(sleeper.pid)

    def no_descriptor(_pid: int) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "_stat", no_descriptor)
    before = open_descriptors()
    with pytest.raises(OSError, match="open files"):
        ProcessHandle.open(identity)
    assert open_descriptors() == before


def test_a_handle_is_close_on_exec_and_closes_once(sleeper: subprocess.Popen[bytes]) -> None:
    handle = ProcessHandle.open(identify(sleeper.pid))
    assert not os.get_inheritable(handle.fileno())
    handle.close()
    handle.close()
    assert handle.fileno() == -1


@pytest.fixture(params=["by pidfd", "before Linux 6.9"])
def group_signal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "before Linux 6.9":
        monkeypatch.setattr(process, "_PIDFD_SIGNAL_PROCESS_GROUP", 1 << 30)
    return str(request.param)


@pytest.mark.usefixtures("group_signal")
def test_a_group_is_signalled_whole(started: Started) -> None:
    leader = started.run("sh", "-c", "sleep 600 & echo $!; wait")
    child = identify(int(line_of(leader)))
    with ProcessHandle.open(identify(leader.pid)) as handle:
        handle.signal_group(signal.SIGKILL)
        assert handle.wait(20)
    eventually(lambda: not is_alive(child))


@pytest.mark.usefixtures("group_signal")
def test_a_group_of_a_dead_leader_that_nobody_waited_for_is_still_its_own(started: Started) -> None:
    leader = started.run("sh", "-c", "sleep 600 & echo $!")
    child = identify(int(line_of(leader)))
    eventually(lambda: state_of(leader.pid) == "Z")
    with ProcessHandle.open(identify(leader.pid)) as handle:
        handle.signal_group(signal.SIGKILL)
    eventually(lambda: not is_alive(child))


@pytest.mark.usefixtures("group_signal")
def test_a_process_that_leads_no_group_has_none_signalled(started: Started) -> None:
    leader = started.run("sh", "-c", "sleep 600 & echo $!; wait")
    member = identify(int(line_of(leader)))
    with ProcessHandle.open(member) as handle, pytest.raises(ProcessLookupError):
        handle.signal_group(signal.SIGKILL)
    assert leader.poll() is None
    assert is_alive(member)


def test_before_linux_6_9_no_group_is_signalled_by_a_number_that_is_free_again(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PIDFD_SIGNAL_PROCESS_GROUP", 1 << 30)
    leader = started.run("sh", "-c", "sleep 600 & echo $!; wait")
    child = identify(int(line_of(leader)))
    started.also(child.pid)
    with ProcessHandle.open(identify(leader.pid)) as handle:
        leader.kill()
        leader.wait()
        with pytest.raises(ProcessLookupError):
            handle.signal_group(signal.SIGKILL)
    assert is_alive(child)


# -- trees -------------------------------------------------------------------------------------------------------------


def test_a_tree_has_children_and_theirs(started: Started) -> None:
    top = started.run("sh", "-c", "sh -c 'sleep 600 & echo $!; wait' & echo $!; wait")
    family = {int(line_of(top)), int(line_of(top))}
    assert descendants(top.pid) >= family
    assert top.pid not in descendants(top.pid)
    assert tree_of(identify(top.pid)) >= family | {top.pid}


def test_a_tree_has_an_orphan_that_stayed_in_the_session(started: Started) -> None:
    top = started.run("sh", "-c", "sh -c 'sleep 600 & echo $!'; exec sleep 600")
    orphan = int(line_of(top))
    eventually(lambda: orphan not in descendants(top.pid), why="its parent ends")
    assert orphan in tree_of(identify(top.pid))


def test_a_tree_has_a_child_that_made_a_session_of_its_own(started: Started) -> None:
    top = started.run("sh", "-c", "setsid sleep 600 & echo $!; wait")
    child = int(line_of(top))
    started.also(child)
    eventually(lambda: os.getsid(child) != top.pid)
    assert child in tree_of(identify(top.pid))


def test_a_tree_of_a_reused_pid_is_empty(sleeper: subprocess.Popen[bytes]) -> None:
    real = identify(sleeper.pid)
    assert tree_of(replace(real, start_ticks=real.start_ticks - 1)) == set()


def test_a_session_is_still_the_tree_of_its_dead_leader(started: Started) -> None:
    leader = started.run("sh", "-c", "sleep 600 & echo $!; wait")
    identity = identify(leader.pid)
    child = int(line_of(leader))
    started.also(child)
    leader.kill()
    leader.wait()
    assert tree_of(identity) == {child}


def test_a_command_is_one_short_printable_line(started: Started) -> None:
    child = started.run(
        sys.executable, "-c", "import time\nprint(1, flush=True)\ntime.sleep(600)\n#\x1b[31m" + "x" * 500
    )
    line_of(child)
    text = command_of(child.pid)
    assert text.isprintable()
    assert len(text) == 80
    assert text.endswith("…")


def test_a_command_that_is_empty_or_no_utf_8_is_shown_too(tmp_path: Path) -> None:
    for pid, name, content in ((5, "cmdline", b"sh\0-c\0a\nb\xff\0  c\0"), (6, "comm", b"kthreadd\n")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").touch()
        (tmp_path / str(pid) / name).write_bytes(content)
    assert command_of(5, proc=tmp_path) == "sh -c a b\ufffd c"
    assert command_of(6, proc=tmp_path) == "kthreadd"


def test_the_command_of_a_process_that_is_not_seen_is_empty(tmp_path: Path) -> None:
    assert command_of(2**22 + 1) == command_of(6, proc=tmp_path) == ""
