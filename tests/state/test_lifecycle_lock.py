"""The lock between lifecycle verbs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from faulty_files import names_in
from support import eventually, scaled
from turnout.errors import LockTimeoutError, StateUnwritableError
from turnout.state.lifecycle_lock import LifecycleLock, LockHolder, lock_timeout
from turnout.system.flock import advice, holder_pid, take
from turnout.system.process import command_of, is_suspended

CHILD = Path(__file__).parents[1] / "support" / "registry_child.py"


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock as "deploy"."""
    command = [sys.executable, str(CHILD), "lifecycle", str(tmp_path), "deploy"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_while_held_it_says_by_whom_and_afterwards_nothing(tmp_path: Path) -> None:
    lock = LifecycleLock(tmp_path, timeout_s=1, verb="up")
    with lock:
        signed = json.loads((tmp_path / "lifecycle.json").read_bytes())
        assert (signed["verb"], signed["pid"]) == ("up", os.getpid())
        assert signed["start_ticks"] > 0
        assert lock.holder() == LockHolder("up", os.getpid(), signed["since"])
    assert names_in(tmp_path) == {"lifecycle.lock"}
    assert lock.holder() == LockHolder()
    with lock:
        pass


def test_whoever_cannot_get_it_is_told_verb_pid_and_since_when(tmp_path: Path, deploy: subprocess.Popen[str]) -> None:
    waited: list[LockHolder] = []
    lock = LifecycleLock(tmp_path, timeout_s=0.1, verb="stop", on_wait=waited.append)
    expected = rf"deploy \(pid {deploy.pid}, since \d\d:\d\d:\d\d\).*nothing was changed"
    with pytest.raises(LockTimeoutError, match=expected) as caught, lock:
        pytest.fail("it is held")
    assert caught.value.exit_code == 6
    assert "--lock-timeout" in (caught.value.hint or "")
    assert [(holder.verb, holder.pid) for holder in waited] == [("deploy", deploy.pid)]
    assert deploy.poll() is None
    assert holder_pid(lock.path) == deploy.pid


@pytest.fixture
def same(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock for the build "b1"."""
    command = [sys.executable, str(CHILD), "lifecycle", str(tmp_path), "up", "up b1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_one_of_the_same_wish_is_waited_for_beyond_the_lock_timeout(
    tmp_path: Path, same: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def third_time_free(path: Path, **more: Any) -> FileLock | None:
        tries.append(more["timeout_s"])
        if len(tries) == 3:
            assert same.stdin
            same.stdin.write("\n")
            same.stdin.flush()
            same.wait(60)
        return take(path, **more)

    monkeypatch.setattr("turnout.state.lifecycle_lock.take", third_time_free)
    with LifecycleLock(tmp_path, timeout_s=0.1, verb="up", wish="up b1", patience_s=60) as lock:
        assert lock.holder().wish == "up b1"
    assert tries == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("wish", ["", "up b2"])
def test_one_of_another_wish_is_not(tmp_path: Path, same: subprocess.Popen[str], wish: str) -> None:
    lock = LifecycleLock(tmp_path, timeout_s=0.1, verb="up", wish=wish, patience_s=3600)
    with pytest.raises(LockTimeoutError, match=rf"up \(pid {same.pid}, .*for the 0\.1 s that up may wait"), lock:
        pytest.fail("it is held")


def test_patience_with_the_same_wish_has_an_end_and_is_said_as_it_was(
    tmp_path: Path, same: subprocess.Popen[str]
) -> None:
    lock = LifecycleLock(tmp_path, timeout_s=0.1, verb="up", wish="up b1", patience_s=0.5)
    with pytest.raises(LockTimeoutError, match=rf"up \(pid {same.pid}, ") as caught, lock:
        pytest.fail("it is held")
    said = re.search(r"for the ([\d.]+) s that up may wait", caught.value.message)
    assert said
    assert float(said[1]) >= 0.5


def test_a_stopped_process_of_the_same_wish_is_not_waited_for(tmp_path: Path, same: subprocess.Popen[str]) -> None:
    same.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: is_suspended(same.pid), why="the process stops")
        lock = LifecycleLock(tmp_path, timeout_s=0.1, verb="up", wish="up b1", patience_s=3600)
        with pytest.raises(LockTimeoutError, match=r"for the 0\.1 s") as caught, lock:
            pytest.fail("it is held")
        assert f"kill -CONT {same.pid}" in (caught.value.hint or "")
    finally:
        same.send_signal(signal.SIGCONT)


def test_a_lock_that_changes_hands_all_the_time_is_never_refused_without_a_name(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom turnout.state.lifecycle_lock import LifecycleLock\n"
        "while True:\n with LifecycleLock(Path(sys.argv[1]), timeout_s=60, verb='busy'):\n  time.sleep(0.02)\n"
    )
    busy = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    try:
        eventually(lambda: holder_pid(tmp_path / "lifecycle.lock"), why="nobody has it")
        refused: list[str] = []
        for _ in range(scaled(10, 200)):
            try:
                with LifecycleLock(tmp_path, timeout_s=0.1, verb="stop"):
                    pass
            except LockTimeoutError as error:
                refused.append(error.message)
        pids = "|".join(str(child.pid) for child in busy)
        assert [text for text in refused if not re.match(rf"busy \(pid ({pids}), since \d", text)] == []
    finally:
        for child in busy:
            child.kill()
            child.wait()


def test_a_stopped_holder_is_named_with_the_way_to_let_it_go_on(tmp_path: Path, deploy: subprocess.Popen[str]) -> None:
    deploy.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: "kill -CONT" in advice(deploy.pid), why="the process stops")
        with (
            pytest.raises(LockTimeoutError, match="deploy") as caught,
            LifecycleLock(tmp_path, timeout_s=0.1, verb="stop"),
        ):
            pytest.fail("it is held")
        assert f"kill -CONT {deploy.pid}" in (caught.value.hint or "")
    finally:
        deploy.send_signal(signal.SIGCONT)


def test_the_kernel_frees_the_lock_of_a_killed_holder_and_its_name_is_not_believed(
    tmp_path: Path, deploy: subprocess.Popen[str]
) -> None:
    deploy.kill()
    deploy.wait()
    assert (tmp_path / "lifecycle.json").exists()
    with LifecycleLock(tmp_path, timeout_s=5, verb="up") as lock:
        assert lock.holder().verb == "up"
    assert not (tmp_path / "lifecycle.json").exists()


def test_a_stale_name_gives_way_to_what_the_kernel_says(tmp_path: Path, deploy: subprocess.Popen[str]) -> None:
    (tmp_path / "lifecycle.json").write_text('{"verb": "up", "pid": 1, "since": 5.0}')
    holder = LifecycleLock(tmp_path, timeout_s=0.1, verb="stop").holder()
    assert holder.pid == deploy.pid
    assert holder.verb == command_of(deploy.pid) != ""


@pytest.mark.parametrize("sidecar", ["", "[]", '{"verb": "up"}', "\0"])
def test_a_torn_name_is_no_trouble(tmp_path: Path, deploy: subprocess.Popen[str], sidecar: str) -> None:
    (tmp_path / "lifecycle.json").write_text(sidecar)
    assert LifecycleLock(tmp_path, timeout_s=0.1, verb="stop").holder().pid == deploy.pid


def test_waiting_ends_when_the_holder_is_done(tmp_path: Path, deploy: subprocess.Popen[str]) -> None:
    waited: list[LockHolder] = []

    def let_go(holder: LockHolder) -> None:
        waited.append(holder)
        assert deploy.stdin
        deploy.stdin.write("\n")
        deploy.stdin.flush()

    with LifecycleLock(tmp_path, timeout_s=30, verb="stop", on_wait=let_go):
        assert len(waited) == 1
    assert deploy.wait(timeout=30) == 0


def test_taking_it_twice_in_one_process_is_a_programming_error(tmp_path: Path) -> None:
    again = LifecycleLock(tmp_path / ".", timeout_s=1, verb="start")
    with LifecycleLock(tmp_path, timeout_s=1, verb="refresh"):
        with pytest.raises(RuntimeError, match="not re-entrant"), again:
            pytest.fail("it is held")
        failed: list[BaseException] = []

        def elsewhere() -> None:
            try:
                again.__enter__()
            except RuntimeError as error:
                failed.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert failed
    with again:
        pass


def test_another_thread_may_let_go_of_it(tmp_path: Path) -> None:
    lock = LifecycleLock(tmp_path, timeout_s=1, verb="up")
    lock.__enter__()
    thread = threading.Thread(target=lambda: lock.__exit__(None, None, None))
    thread.start()
    thread.join()
    with LifecycleLock(tmp_path, timeout_s=1, verb="up"):
        pass


def test_locks_of_two_services_do_not_meet(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with LifecycleLock(tmp_path / "a", timeout_s=1, verb="up"), LifecycleLock(tmp_path / "b", timeout_s=1, verb="up"):
        pass


def test_a_lock_that_cannot_be_made_is_a_clear_error_and_frees_the_way(tmp_path: Path) -> None:
    (tmp_path / "lifecycle.lock").mkdir()
    lock = LifecycleLock(tmp_path, timeout_s=0.2, verb="up")
    with pytest.raises(StateUnwritableError, match="cannot lock"), lock:
        pytest.fail("it cannot be had")
    (tmp_path / "lifecycle.lock").rmdir()
    with lock:
        pass


def test_a_free_lock_has_no_holder(tmp_path: Path) -> None:
    path = tmp_path / "free.lock"
    assert holder_pid(path) is None
    path.touch()
    assert holder_pid(path) is None


def test_the_holder_is_found_among_waiters_and_other_kinds_of_locks(tmp_path: Path) -> None:
    path = tmp_path / "some.lock"
    path.touch()
    state = path.stat()
    where = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    (tmp_path / "locks").write_text(
        f"1: POSIX  ADVISORY  WRITE 11 {where} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 12 7f:7f:{state.st_ino} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 13 {where} 0 EOF\n"
        f"3: -> FLOCK  ADVISORY  WRITE 14 {where} 0 EOF\n"
    )
    assert holder_pid(path, proc=tmp_path) == 13
    (tmp_path / "locks").write_text("nonsense\n")
    assert holder_pid(path, proc=tmp_path) is None


@pytest.mark.parametrize(
    ("value", "seconds", "warns"),
    [
        (None, 8.0, False),
        ("", 8.0, False),
        ("2.5", 2.5, False),
        (" 3 ", 3.0, False),
        ("0.1", 0.1, False),
        ("0.01", 0.1, True),
        ("0", 0.1, True),
        ("-1", 8.0, True),
        ("nan", 8.0, True),
        ("inf", 8.0, True),
        ("1e300", 8.0, True),
        ("soon", 8.0, True),
        ("8s", 8.0, True),
    ],
)
def test_a_bad_timeout_falls_to_the_default_with_a_warning(value: str | None, seconds: float, *, warns: bool) -> None:
    found, warning = lock_timeout(value)
    assert found == seconds
    assert bool(warning) == warns
    assert not warns or repr(value) in str(warning)
