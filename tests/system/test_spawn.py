from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import few_descriptors
import spawn_parent
from process_support import Started, line_of
from support import eventually, scaled
from turnout.core.model import Identity
from turnout.errors import SpawnError, StateUnwritableError
from turnout.system.daemon_log import older
from turnout.system.net import ports
from turnout.system.net.ports import choose_port
from turnout.system.process import identify, is_alive
from turnout.system.spawn_record import EndRecord, SpawnRecord, prune_records, read_records, record_end, write_record

PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


class Parent:
    """A process that spawns as the keeper does. Owns it, and every daemon that it started."""

    def __init__(self, started: Started, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "b1.log"
        self.record = directory / "b1.json"
        self._started = started
        self.process = started.run(sys.executable, "-P", spawn_parent.__file__, stdin=subprocess.PIPE)

    def tell(self, op: str, **told: Any) -> dict[str, Any]:
        self.send(op, **told)
        found: dict[str, Any] = json.loads(line_of(self.process))
        return found

    def send(self, op: str, **told: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"op": op, **told}).encode() + b"\n")
        self.process.stdin.flush()

    def request(self, *argv: str, **more: Any) -> dict[str, Any]:
        base = {"argv": argv, "cwd": str(self.directory), "env": PATH, "log": str(self.log), "record": str(self.record)}
        return {**base, **more}

    def spawn(self, *argv: str, **more: Any) -> dict[str, Any]:
        answer = self.tell("spawn", **self.request(*argv, **more))
        if answer["ok"]:
            self._started.also(answer["pid"])
        return answer

    def run(self, *argv: str, **more: Any) -> tuple[int, str]:
        """Spawn, wait, and answer the exit code and what it wrote."""
        answer = self.spawn(*argv, **more)
        assert answer["ok"], answer
        status = self.tell("wait", pid=answer["pid"], record=str(self.record))["status"]
        return os.waitstatus_to_exitcode(status), self.log.read_text()


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


@pytest.fixture
def parent(started: Started, tmp_path: Path) -> Parent:
    return Parent(started, tmp_path)


# -- what a daemon gets ------------------------------------------------------------------------------------------------


def test_a_daemon_gets_its_environment_and_nothing_else(parent: Parent) -> None:
    code, out = parent.run("/usr/bin/env", env={"A": "1", "PATH": "/nowhere"})
    assert code == 0
    assert sorted(out.splitlines()) == ["A=1", "PATH=/nowhere"]


def test_a_daemon_sees_its_command_word_for_word(parent: Parent) -> None:
    _, out = parent.run("sh", "-c", 'printf "%s|" "$0" "$@"', "a b", "", "$HOME", "*")
    assert out == "a b||$HOME|*|"


def test_a_daemon_runs_in_its_directory(parent: Parent) -> None:
    (parent.directory / "sub").mkdir()
    _, out = parent.run("pwd", cwd=str(parent.directory / "sub"))
    assert out.strip() == str(parent.directory / "sub")


def test_a_daemon_gets_the_umask_the_limits_and_the_program_of_its_request(parent: Parent) -> None:
    bin_directory = parent.directory / "bin"
    bin_directory.mkdir()
    program = bin_directory / "sh"
    program.write_text('#!/bin/sh\necho "recorded $(umask) $(ulimit -Sn) $(ulimit -Hn)"\n')
    program.chmod(0o755)
    request = {"umask": 0o137, "limits": {"nofile": [60, 70], "no such limit": [1, 2]}, "program": str(program)}
    _, out = parent.run("sh", "-c", "echo found on the PATH", **request)
    assert out.strip() == "recorded 0137 60 70"


def test_a_program_that_is_gone_is_looked_up_again(parent: Parent) -> None:
    _, out = parent.run("sh", "-c", "echo found on the PATH", program=str(parent.directory / "gone"))
    assert out.strip() == "found on the PATH"


def test_a_hard_limit_that_may_not_be_raised_is_no_reason_not_to_start(parent: Parent) -> None:
    _, own_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(Path("/proc/sys/fs/nr_open").read_text())  # above it setrlimit(2) fails for everybody
    _, out = parent.run("sh", "-c", "ulimit -Sn; ulimit -Hn", limits={"nofile": [most + 1, most + 2]})
    assert out.split() == [str(own_hard), str(own_hard)]


def test_a_daemon_leads_a_session_of_its_own(parent: Parent) -> None:
    pid = parent.spawn("sleep", "600")["pid"]
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_a_daemon_inherits_no_descriptor_but_the_first_three(parent: Parent) -> None:
    _, out = parent.run("sh", "-c", "ls -l /proc/$$/fd")
    found = {line.split(" ")[-3]: line.split(" ")[-1] for line in out.splitlines() if "->" in line}
    assert found == {"0": "/dev/null", "1": str(parent.log), "2": str(parent.log)}


def test_a_daemon_inherits_no_handler_no_blocked_and_no_ignored_signal(parent: Parent) -> None:
    _, out = parent.run("cat", "/proc/self/status")
    masks = dict(line.split(":\t") for line in out.splitlines() if line.startswith(("SigBlk", "SigIgn", "SigCgt")))
    ours = ~(1 << 31 | 1 << 32)  # 32 and 33 belong to the C library, which lets nobody set them (nptl(7))
    assert {name: int(mask, 16) & ours for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_the_parent_has_its_signal_mask_back(parent: Parent) -> None:
    before = parent.tell("look")["blocked"]
    parent.run("true")
    assert parent.tell("look")["blocked"] == before == [signal.SIGUSR1]


def test_a_daemon_gets_the_file_limit_it_is_given(parent: Parent) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    _, out = parent.run("sh", "-c", "ulimit -Sn; ulimit -Hn", nofile=[77, hard])
    assert out.splitlines()[0] == "77"


def test_a_passed_listener_is_descriptor_3_and_announced(parent: Parent) -> None:
    code = (
        "import os, socket\n"
        "print(os.environ['LISTEN_FDS'], int(os.environ['LISTEN_PID']) == os.getpid())\n"
        "print(socket.socket(fileno=3).getsockname()[1])\n"
    )
    _, out = parent.run(sys.executable, "-S", "-c", code, **{"pass": True})
    assert out.splitlines() == ["1 True", str(parent.tell("port")["port"])]


def test_a_daemon_outlives_its_parent(parent: Parent) -> None:
    identity = identify(parent.spawn("sleep", "600")["pid"])
    parent.process.kill()
    parent.process.wait()
    assert is_alive(identity)


# -- its log -----------------------------------------------------------------------------------------------------------


def test_output_and_errors_are_appended_to_a_log_that_only_its_owner_reads(parent: Parent) -> None:
    parent.run("sh", "-c", "echo one; echo two >&2")
    parent.run("sh", "-c", "echo three")
    assert parent.log.read_text() == "one\ntwo\nthree\n"
    assert stat.S_IMODE(parent.log.stat().st_mode) == 0o600


def test_a_log_that_is_a_symbolic_link_is_refused_and_nothing_runs(parent: Parent) -> None:
    target = parent.directory / "precious"
    target.write_text("kept")
    parent.log.symlink_to(target)
    answer = parent.spawn("sh", "-c", "echo lost")
    assert answer["error"] == "StateUnwritableError"
    assert "symbolic link" in answer["message"]
    assert target.read_text() == "kept"
    assert parent.tell("look")["children"] == []


# -- its record --------------------------------------------------------------------------------------------------------


def test_the_record_is_there_when_the_daemon_begins(parent: Parent) -> None:
    answer = parent.spawn("sh", "-c", f"cat {parent.record}; sleep 600")
    identity = identify(answer["pid"])
    assert answer["start_ticks"] == identity.start_ticks
    told = json.loads(eventually(parent.log.read_text))
    assert told["boot_id"] == "b1"
    record = read_records(parent.directory)["b1"]
    assert record.identity == identity
    assert (record.service, record.log, record.ended) == ("svc", str(parent.log), None)
    assert stat.S_IMODE(parent.record.stat().st_mode) == 0o600


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", -9), ("exit 0", 0)])
def test_how_it_ended_is_recorded(parent: Parent, command: str, code: int) -> None:
    parent.run("sh", "-c", command)
    ended = read_records(parent.directory)["b1"].ended
    assert ended
    assert ended.status is not None
    assert os.waitstatus_to_exitcode(ended.status) == code
    assert ended.ended_ts > 0


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_parent_killed_around_the_record_leaves_no_daemon_running(parent: Parent, step: str) -> None:
    note, mark = parent.directory / "note", parent.directory / "mark"
    parent.tell("die", step=step, note=str(note))
    parent.send("spawn", **parent.request("sh", "-c", f"touch {mark}; sleep 600"))
    assert parent.process.wait(20) == -signal.SIGKILL
    child = int(note.read_text())
    eventually(lambda: not is_alive(Identity(child)), why="the child ends at the closed gate")
    assert not mark.exists()
    if step == "before":
        assert not parent.record.exists()
    else:
        assert read_records(parent.directory)["b1"].identity.pid == child


def test_a_record_that_cannot_be_written_leaves_no_daemon(parent: Parent) -> None:
    mark = parent.directory / "mark"
    answer = parent.spawn("sh", "-c", f"touch {mark}", record=str(parent.directory / "missing" / "b1.json"))
    assert answer["error"] == "StateUnwritableError"
    assert parent.tell("look")["children"] == []
    assert not mark.exists()


# -- what cannot be started --------------------------------------------------------------------------------------------


def _script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_each_thing_that_cannot_run_is_told_in_one_line_and_leaves_nothing(parent: Parent) -> None:
    here = parent.directory
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["no-such-command"], {}, "no such command: no-such-command"),
        (["./no-such-command"], {}, f"no such command: {here}/no-such-command"),
        ([_script(here / "plain", "text", 0o644)], {}, f"not executable: {here}/plain"),
        ([_script(here / "headless", "echo hello")], {}, "exec format"),
        ([_script(here / "orphan", "#!/no/such/interpreter\n")], {}, "interpreter does not exist"),
        (["true"], {"cwd": str(here / "nowhere")}, f"no such directory: {here}/nowhere"),
        (["true"], {"nofile": [10, 5]}, "open files"),
        (["tr\0ue"], {}, "NUL"),
        (["true"], {"env": {"A=B": "1", **PATH}}, "="),
        (["true", "x" * (1 << 18)], {}, "too long"),
        ([], {}, "empty"),
    ]
    before = parent.tell("look")
    for argv, more, message in cases:
        answer = parent.spawn(*argv, **more)
        assert not answer["ok"], argv[:1]
        assert answer["error"] == "SpawnError", answer
        assert message in answer["message"], answer
        assert "\n" not in answer["message"]
        assert answer["hint"], answer
        assert not parent.record.exists(), answer
    assert parent.tell("look") == before, "no child and no descriptor is left"


def _with_few_descriptors(started: Started, directory: Path, *words: str) -> list[dict[str, Any]]:
    process = started.run(sys.executable, "-P", few_descriptors.__file__, str(directory), *words)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def test_however_few_descriptors_are_left_a_daemon_runs_recorded_or_nothing_of_it_is_left(
    tmp_path: Path, started: Started
) -> None:
    found = _with_few_descriptors(started, tmp_path, "0", "14")
    nothing = {"leaked": 0, "processes": 0, "records": []}
    assert [{key: one[key] for key in nothing} for one in found] == [nothing] * 14
    assert "Too many open files" in found[0]["error"]
    assert [one["error"] for one in found[-2:]] == ["", ""], "the last of them were enough"


def test_a_daemon_whose_shim_says_nothing_is_not_waited_for_at_its_gate(tmp_path: Path, started: Started) -> None:
    (said,) = _with_few_descriptors(started, tmp_path, "20", "21", "silent")
    assert "fork: Too many open files" in said["error"]
    assert (said["leaked"], said["processes"], said["records"]) == (0, 0, [])


@pytest.mark.parametrize("number", [0, 1], ids=["the keeper's", "the shim's"])
def test_a_fork_that_fails_is_no_fault_of_the_daemon_and_leaves_nothing(
    tmp_path: Path, started: Started, number: int
) -> None:
    (said,) = _with_few_descriptors(started, tmp_path, "20", "21", "fork", str(number))
    assert said["kind"] == "NotBegunError"
    assert said["error"].endswith("fork: Resource temporarily unavailable")
    assert (said["leaked"], said["processes"], said["records"]) == (0, 0, [])


def test_a_record_that_the_disk_does_not_take_leaves_no_daemon(tmp_path: Path, started: Started) -> None:
    (said,) = _with_few_descriptors(started, tmp_path, "20", "21", "disk")
    assert said["kind"] == "StateUnwritableError"
    assert said["error"].endswith("b20.json: Input/output error")
    assert (said["leaked"], said["processes"], said["records"]) == (0, 0, [])


def test_spawning_often_leaks_no_descriptor(parent: Parent) -> None:
    parent.run("true")
    before = parent.tell("look")
    for _ in range(scaled(30, 3000)):
        assert parent.run("true")[0] == 0
    assert parent.tell("look") == before


# -- records -----------------------------------------------------------------------------------------------------------

RECORD = SpawnRecord("b1", "svc", Identity(12, 34, "boot", 56), "/log", 1.5)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "b1.json", RECORD)
    assert read_records(tmp_path) == {"b1": RECORD}
    record_end(tmp_path / "b1.json", None)
    ended = read_records(tmp_path)["b1"].ended
    assert ended == EndRecord(None, ended.ended_ts if ended else 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "b1.json"]


def test_a_record_torn_at_any_byte_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "b1.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    for size in range(len(whole) - 1):  # the last byte is the newline
        path.write_bytes(whole[:size])
        assert read_records(tmp_path) == {}
    path.write_bytes(bytes(len(whole)))
    assert read_records(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '"x"',
        "{}",
        '{"boot_id": "b"}',
        '{"boot_id":"b","service":"s","pid":[],"start_ticks":1,"machine_boot_id":"","pid_ns":0,"log":"","spawned_ts":0}',
        '{"boot_id":"b","service":"s","pid":Infinity,"start_ticks":1,"machine_boot_id":"","pid_ns":0,"log":"","spawned_ts":0}',
        "[" * 50000,
    ],
)
def test_a_foreign_file_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "other.txt").write_text("{}")
    write_record(tmp_path / "b1.json", RECORD)
    assert read_records(tmp_path) == {"b1": RECORD}


def test_no_directory_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "missing") == {}


def test_the_end_of_a_daemon_without_a_record_raises_nothing(tmp_path: Path) -> None:
    record_end(tmp_path / "b1.json", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_record_with_nowhere_to_go_says_where(tmp_path: Path) -> None:
    with pytest.raises(StateUnwritableError, match="missing"):
        write_record(tmp_path / "missing" / "b1.json", RECORD)


# -- set_subreaper -----------------------------------------------------------------------------------------------------


def test_an_orphan_of_a_daemon_becomes_the_subreapers_child(parent: Parent) -> None:
    parent.tell("subreaper")
    parent.run("sh", "-c", "sleep 600 & echo $!")
    orphan = int(parent.log.read_text())
    parent._started.also(orphan)
    eventually(lambda: orphan in parent.tell("look")["children"])


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_chosen_port_lies_outside_the_ephemeral_range_and_is_not_the_fixed_one() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(50):
        with choose_port() as reserved:
            assert reserved.port != 47777
            assert reserved.port >= 1024
            assert not low <= reserved.port <= high


def test_two_that_choose_never_get_one_port() -> None:
    reserved = [choose_port() for _ in range(100)]
    assert len({one.port for one in reserved}) == 100
    for one in reserved:
        one.release()


def test_a_reserved_port_is_refused_to_others_but_not_to_the_daemon() -> None:
    with choose_port() as reserved:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", reserved.port))
        with (
            socket.create_server(("127.0.0.1", reserved.port)) as daemon,  # it sets SO_REUSEADDR
            socket.create_connection(daemon.getsockname()) as client,
            daemon.accept()[0] as served,
        ):
            served.sendall(b"x")
            assert client.recv(1) == b"x"
        with socket.create_server(("0.0.0.0", reserved.port)):
            pass


def test_a_released_port_is_anybodys() -> None:
    with choose_port() as reserved:
        port = reserved.port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def _only_below(monkeypatch: pytest.MonkeyPatch, low: int) -> None:
    """Have everything from ``low`` on be the ephemeral range."""
    monkeypatch.setattr(ports, "_ephemeral_range", lambda: (low, 65535))


def test_ports_to_avoid_are_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    with choose_port() as free:
        port = free.port
    _only_below(monkeypatch, port + 1)
    with choose_port(avoid=range(20000, port)) as reserved:
        assert reserved.port == port


def test_where_no_port_lies_outside_the_range_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    _only_below(monkeypatch, 1024)
    with choose_port() as reserved:
        assert reserved.port > 0


def test_a_port_that_somebody_has_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with choose_port() as taken:
        _only_below(monkeypatch, taken.port + 1)
        with pytest.raises(SpawnError, match="no free port"):
            choose_port(avoid=range(20000, taken.port))


def test_a_port_can_be_reserved_on_ipv6() -> None:
    with choose_port("::1") as reserved, socket.create_server(("::1", reserved.port), family=socket.AF_INET6):
        pass


def test_old_records_go_with_their_logs_and_what_runs_or_is_named_stays(tmp_path: Path) -> None:
    records, logs = tmp_path / "daemons", tmp_path / "logs"
    records.mkdir()
    logs.mkdir()
    for number in range(6):
        log = logs / f"b{number}.log"
        log.write_text("said")
        ended = EndRecord(0, float(number)) if number != 1 else None
        write_record(records / f"b{number}.json", SpawnRecord(f"b{number}", "s", Identity(1), str(log), 0.0, ended))
    prune_records(records, keep=2, spare={"b0"})
    assert set(read_records(records)) == {"b0", "b1", "b4", "b5"}
    assert {path.name for path in logs.glob("*.log")} == {"b0.log", "b1.log", "b4.log", "b5.log"}


def test_logs_of_ended_daemons_are_bounded_together_and_the_newest_stays(tmp_path: Path) -> None:
    for number in range(5):
        log = tmp_path / f"b{number}.log"
        log.write_bytes(b"x" * 1000)
        older(log).write_bytes(b"x" * 1000)
        record = SpawnRecord(f"b{number}", "svc", Identity(1), str(log), 0.0, EndRecord(0, float(number)))
        write_record(tmp_path / f"b{number}.json", record)
    prune_records(tmp_path, keep=50, keep_bytes=4500)
    assert sorted(read_records(tmp_path)) == ["b3", "b4"]
    assert sorted(path.name for path in tmp_path.glob("*.log*")) == ["b3.log", "b3.log.1", "b4.log", "b4.log.1"]
    prune_records(tmp_path, keep=50, keep_bytes=0)
    assert sorted(read_records(tmp_path)) == ["b4"]
