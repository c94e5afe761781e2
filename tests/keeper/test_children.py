"""Daemons are more than the process that was started: what belongs to them, and how all of it is ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import children_host
from process_support import Started, line_of
from support import eventually
from turnout.keeper.children import Child, Children
from turnout.system.boot_processes import is_login_session
from turnout.system.process import ProcessHandle, descendants, identify, is_alive, is_suspended
from turnout.system.spawn_record import read_records

# Notes each signal, and needs a moment to put its data away. Where it may not print, it dies of that, as C programs do.
SAVING = """
import os, signal, sys, time
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
def stop(number, _):
    print("stopping", flush=True)
    with open("noted", "a") as file: file.write(signal.Signals(number).name + " ")
    time.sleep(0.3)
    with open("noted", "a") as file: file.write("saved")
    os._exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT): signal.signal(number, stop)
open("pid.new", "w").write(str(os.getpid()))
os.rename("pid.new", "pid")
while True: time.sleep(60)
"""

# Ends its worker by a signal of its own, which is not the one that it gets itself, and waits for it.
MASTER = """
import os, signal, sys, time
ready, say_ready = os.pipe()
worker = os.fork()
if worker == 0:
    def note(number, _):
        with open("noted", "a") as file: file.write(signal.Signals(number).name + " ")
        if number == signal.SIGUSR1:
            time.sleep(0.3)
            os._exit(0)
    for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, note)
    os.write(say_ready, b"x")
    while True: time.sleep(60)
def stop(*_):
    os.kill(worker, signal.SIGUSR1)
    os.waitpid(worker, 0)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
os.read(ready, 1)
open("pid.new", "w").write(str(worker))
os.rename("pid.new", "pid")
while True: time.sleep(60)
"""

# Leaves session, group, parents and environment, and ignores what asks it to end.
ESCAPE = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note = os.environ["TURNOUT_BOOT_ID"] + ".escaped"
        code = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        code += f"open('{note}.new', 'w').write(str(os.getpid())); os.rename('{note}.new', '{note}'); time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-c", code], {})
    os._exit(0)
os.wait()
if sys.argv[1:] == ["and-end"]: sys.exit(3)
time.sleep(600)
"""


class Host:
    """A process that is to daemons what the keeper is. Owns it, and ends what it started with the test."""

    def __init__(self, started: Started, directory: Path) -> None:
        self.directory = directory
        self.started = started
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return self.started.run(
            sys.executable, "-P", children_host.__file__, str(self.directory), stdin=subprocess.PIPE
        )

    def tell(self, op: str, **told: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"op": op, **told}).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, what: str, **which: Any) -> dict[str, Any]:
        """The next event of that kind."""
        while True:
            said: dict[str, Any] = json.loads(line_of(self.process))
            if said["what"] == what and which.items() <= said.items():
                return said

    def spawn(self, *argv: str, boot_id: str = "b1") -> dict[str, Any]:
        self.tell("spawn", argv=argv, boot_id=boot_id)
        said = self.hear("spawned")
        self.started.also(said["pid"])
        self.started.also(said["shim"])
        return said

    def stop(self, boot_id: str = "b1", **more: Any) -> None:
        self.tell("stop", boot_id=boot_id, **more)
        self.hear("gone", boot_id=boot_id)

    def pid_in(self, name: str) -> int:
        """The process that wrote its number into that file, once it has."""
        path = self.directory / name
        eventually(path.exists, why=f"{name}: {(self.directory / 'b1.log').read_text()}")
        pid = int(path.read_text())
        self.started.also(pid)
        return pid

    @property
    def noted(self) -> str:
        path = self.directory / "noted"
        return path.read_text() if path.exists() else ""

    def replace(self) -> None:
        """Kill it, and have another adopt what it left."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()
        self.tell("adopt")
        self.hear("adopted")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Started() as started:
        yield Host(started, tmp_path)


def lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return is_alive(identify(pid))
    return False


def saving(host: Host) -> str:
    """The command line of the daemon that saves, for a shell."""
    (host.directory / "saving.py").write_text(SAVING)
    return f"{sys.executable} saving.py"


# -- the stop signal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "{daemon} 2>&1 | cat",
        "{daemon}; echo ended",
        "{daemon} & wait",
        "setsid {daemon} & wait",
        "(setsid env -i {daemon} &); sleep 600",
    ],
)
def test_what_outlives_a_wrapper_shell_gets_one_stop_signal_and_its_grace(host: Host, line: str) -> None:
    host.spawn("sh", "-c", line.format(daemon=saving(host)))
    pid = host.pid_in("pid")
    host.stop()
    assert host.noted == "SIGTERM saved", "whoever asked is answered when all is over, and not before"
    assert not lives(pid)


def test_it_is_the_stop_signal_of_the_service(host: Host) -> None:
    host.spawn("sh", "-c", f"{saving(host)}; true")
    host.pid_in("pid")
    host.stop(signal="INT", grace_s=2.0)  # dash waits for its command, and then dies of it
    assert host.noted == "SIGINT saved"


def test_a_shell_that_waits_for_its_command_before_it_heeds_its_trap_is_not_waited_for(host: Host) -> None:
    host.spawn("bash", "-c", f"trap 'exit 0' TERM; {saving(host)}; true")
    host.pid_in("pid")
    host.stop(grace_s=2.0)
    assert host.noted == "SIGTERM saved"


def test_a_master_that_ends_its_worker_by_itself_is_not_disturbed(host: Host) -> None:
    host.spawn(sys.executable, "-c", MASTER)
    host.pid_in("pid")
    host.stop()
    assert host.noted == "SIGUSR1 "


def test_asking_again_while_it_ends_sends_no_second_signal(host: Host) -> None:
    host.spawn("sh", "-c", f"{saving(host)}; true")
    host.pid_in("pid")
    host.tell("stop")
    host.hear("ended")  # the shell; what it ran is still saving
    host.tell("stop")
    host.hear("gone")
    host.hear("gone")
    assert host.noted == "SIGTERM saved"


@pytest.mark.parametrize("wrapper", ["{daemon}; true", "trap : TERM; while :; do {daemon}; done"])
def test_what_ignores_the_stop_signal_is_killed_after_the_grace(host: Host, wrapper: str) -> None:
    code = "import os,signal,time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    line = wrapper.format(daemon=f"{sys.executable} -c '{code}'")
    shell = host.spawn("bash", "-c", line)["pid"]
    log = host.directory / "b1.log"
    pid = int(eventually(log.read_text))
    host.stop(grace_s=0.4)
    assert not lives(pid)
    assert not lives(shell)


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_stopped_shim_delays_its_own_start_alone(host: Host) -> None:
    host.tell("spawn", argv=["sleep", "600"], boot_id="b1", stopped=True)
    shim = host.hear("stopped")["pid"]
    host.started.also(shim)
    eventually(lambda: is_suspended(shim))
    host.spawn("sleep", "600", boot_id="b2")
    os.kill(shim, signal.SIGCONT)
    said = host.hear("spawned")
    host.started.also(said["pid"])
    assert (said["boot_id"], said["shim"]) == ("b1", shim)
    host.stop("b1")
    assert not lives(said["pid"])


def test_a_daemon_whose_shim_stays_stopped_is_not_started_and_nothing_of_it_is_left(host: Host) -> None:
    host.tell("spawn", argv=["sleep", "600"], boot_id="b1", stopped=True, fork_within_s=0.2)
    shim = host.hear("stopped")["pid"]
    host.started.also(shim)
    assert "timed out" in host.hear("refused")["message"]
    assert not Path(f"/proc/{shim}").exists(), "it was killed, and waited for"
    assert read_records(host.directory) == {}
    host.spawn("sleep", "600", boot_id="b1")


@pytest.mark.parametrize("hangs", ["command", "disk"])
def test_a_command_or_a_disk_that_hangs_delays_its_own_start_alone(host: Host, hangs: str) -> None:
    os.mkfifo(host.directory / "hangs")
    host.tell("spawn", argv=["sleep", "600"], boot_id="b1", hangs=hangs)
    host.spawn("sleep", "600", boot_id="b2")
    (host.directory / "hangs").write_bytes(b"")
    said = host.hear("spawned")
    host.started.also(said["pid"])
    host.started.also(said["shim"])
    assert said["boot_id"] == "b1"
    host.stop("b1")
    assert not lives(said["pid"])


# -- whose process it is -----------------------------------------------------------------------------------------------


def test_a_process_that_left_session_parents_and_environment_is_ended_with_its_daemon_and_no_other(host: Host) -> None:
    for boot_id in ("b1", "b2"):
        host.spawn(sys.executable, "-c", ESCAPE, boot_id=boot_id)
    one, two = host.pid_in("b1.escaped"), host.pid_in("b2.escaped")
    assert Path(f"/proc/{one}/environ").read_bytes().count(b"TURNOUT") == 0
    host.stop("b1", grace_s=0.3)
    assert not lives(one)
    assert lives(two)


def test_it_is_found_after_its_daemon_has_ended_by_itself(host: Host) -> None:
    shim = host.spawn(sys.executable, "-c", ESCAPE, "and-end")["shim"]
    host.hear("ended")
    pid = host.pid_in("b1.escaped")
    record = read_records(host.directory)["b1"]
    assert record.ended
    assert record.ended.status == 3 << 8, "how the daemon ended is known, though the shim waited for it"
    assert record.has_remains, "who looks at the records sees that something is left"
    host.stop(grace_s=0.3)
    assert not lives(pid)
    assert not lives(shim)
    assert not read_records(host.directory)["b1"].has_remains


@pytest.mark.parametrize("argument", ["", "and-end"])
def test_it_is_found_by_the_next_keeper(host: Host, argument: str) -> None:
    host.spawn(sys.executable, "-c", ESCAPE, argument)
    pid = host.pid_in("b1.escaped")
    if argument:
        host.hear("ended")
    host.replace()
    assert lives(pid)
    host.stop(grace_s=0.3)
    assert not lives(pid)


def test_a_daemon_whose_shim_was_killed_is_ended_with_its_session_and_its_status_is_known(host: Host) -> None:
    said = host.spawn("sh", "-c", f"{saving(host)}; true")
    host.pid_in("pid")
    os.kill(said["shim"], signal.SIGKILL)
    eventually(lambda: said["pid"] in descendants(host.process.pid) and not lives(said["shim"]))
    host.stop()
    assert host.noted == "SIGTERM saved"
    ended = read_records(host.directory)["b1"].ended
    assert ended
    assert ended.status == signal.SIGTERM


def test_a_shim_that_somebody_stopped_keeps_nobody_waiting(host: Host) -> None:
    said = host.spawn("sleep", "600")
    os.kill(said["shim"], signal.SIGSTOP)
    host.stop()
    assert not lives(said["pid"])


def test_a_login_session_is_spared_and_what_is_not_one_is_not(host: Host) -> None:
    login = 'import os, time; open("/proc/self/loginuid", "w").write("4242"); print(os.getpid(), flush=True)'
    (host.directory / "login.py").write_text(f"{login}\ntime.sleep(600)\n")
    host.spawn("sh", "-c", f"setsid {sys.executable} login.py & setsid sleep 600 & wait")
    log = host.directory / "b1.log"
    said = eventually(log.read_text).split()
    if not said[0].isdigit():
        pytest.skip(f"no login can be set here: {log.read_text()}")
    pid = int(said[0])
    host.started.also(pid)
    others = descendants(host.process.pid) - {pid}
    host.stop()
    assert lives(pid)
    eventually(lambda: not [other for other in others if lives(other)], why="the shim is killed after all else")


@pytest.mark.parametrize("words", ["-m turnout.keeper /home/other", "-m turnout.router /home/other"])
def test_a_keeper_that_was_started_from_within_a_daemon_is_spared_with_all_that_it_runs(host: Host, words: str) -> None:
    code = "import subprocess as s; p = s.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    keeper = f'setsid {sys.executable} -c "{code}" {words}'
    said = host.spawn("sh", "-c", f"{keeper} & echo $! >keeper.new; mv keeper.new keeper; setsid sleep 600 & wait")
    keeper_pid = host.pid_in("keeper")
    below = int(eventually((host.directory / "b1.log").read_text))
    host.started.also(below)
    others = descendants(said["shim"]) - {keeper_pid, below}
    host.stop()
    assert lives(keeper_pid)
    assert lives(below)
    assert not [other for other in others if lives(other)]
    # the shim, which stands for what is left, is ended right after the answer
    eventually(lambda: not read_records(host.directory)["b1"].has_remains, why="what is spared counts as left")


def test_whether_a_process_is_a_login_session_is_told_by_its_login_and_by_its_session_scope(tmp_path: Path) -> None:
    def process(pid: int, login: str, session: str, cgroup: str) -> None:
        (tmp_path / str(pid)).mkdir()
        for name, text in (("loginuid", login), ("sessionid", session), ("cgroup", cgroup)):
            (tmp_path / str(pid) / name).write_text(f"{text}\n")

    unset = str(2**32 - 1)
    shell = "0::/user.slice/user-1000.slice/session-3.scope"
    process(1, unset, unset, "0::/system.slice/app.service")
    process(2, unset, unset, "0::/system.slice/app.service/worker-session.scope")
    process(3, "1000", "7", "0::/system.slice/app.service")
    process(4, unset, unset, "0::/user.slice/user-1000.slice/session-9.scope")
    process(10, "1000", "3", shell)  # turnout itself was started from a login, and so has one
    process(11, "1000", "3", shell)
    process(12, "1000", "8", shell)  # the same person, who came in by the daemon
    process(13, "1000", "3", "0::/user.slice/user-1000.slice/session-9.scope")
    sessions = [pid for pid in (2, 3, 4) if is_login_session(pid, 1, proc=tmp_path)]
    assert sessions == [3, 4]
    assert [pid for pid in (11, 12, 13) if is_login_session(pid, 10, proc=tmp_path)] == [12, 13]
    assert not is_login_session(99, 1, proc=tmp_path), "one that cannot be seen is none"


# -- the shim ----------------------------------------------------------------------------------------------------------


def test_a_shim_has_nothing_of_the_keepers_and_ends_with_the_last_process(host: Host) -> None:
    said = host.spawn("sh", "-c", "(setsid sleep 600 & echo $! >left.new; mv left.new left); exec sleep 600")
    left, shim = host.pid_in("left"), said["shim"]
    fds = {str(link.readlink()) for link in Path(f"/proc/{shim}/fd").iterdir()}
    assert [fd.partition(":")[0] for fd in fds] == ["pipe"]
    assert Path(f"/proc/{shim}/cwd").readlink() == Path("/")
    assert Path(f"/proc/{shim}/cmdline").read_bytes().rstrip(b"\0") == b"turnout-shim"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(shim, number)
    os.kill(said["pid"], signal.SIGKILL)
    host.hear("ended")
    assert lives(shim)
    os.kill(left, signal.SIGKILL)
    eventually(lambda: not lives(shim))


def test_a_daemon_that_cannot_be_executed_leaves_no_shim(host: Host) -> None:
    bad = host.directory / "bad"
    bad.write_text("#!/no/such/interpreter\n")
    bad.chmod(0o700)
    host.tell("spawn", argv=[str(bad)])
    assert "interpreter does not exist" in host.hear("refused")["message"]
    assert descendants(host.process.pid) == set()
    assert list(host.directory.glob("*.json")) == []


def test_the_activity_of_a_process_stands_still_while_it_hangs() -> None:
    with Started() as started:
        process = started.run(
            sys.executable, "-c", "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.001)"
        )
        line_of(process)
        own = ProcessHandle.open(identify(process.pid))
        child = Child("router-1", "", own, Path("/r"), Path("/l"), own.identity, mine=True)
        before = Children.activity(child)
        eventually(lambda: Children.activity(child) > before)
        own.signal(signal.SIGSTOP)
        eventually(lambda: is_suspended(process.pid))
        assert Children.activity(child) == Children.activity(child) > 0
        own.close()
