"""A lock is never lost: not to an interrupt, and not to the thread that has it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from turnout.errors import LockTimeoutError
from turnout.system.flock import hold, holder_pid, is_free, take


def test_a_thread_gets_what_an_interrupt_made_it_forget(tmp_path: Path) -> None:
    """Ctrl-C comes when the lock is taken and the with block has not begun: nobody will ever leave that block."""
    abandoned = hold(tmp_path / "lock", timeout_s=0, guarded="it")
    abandoned.__enter__()  # as the with statement does, which is then interrupted
    with hold(tmp_path / "lock", timeout_s=0, guarded="it"):
        assert take(tmp_path / "lock", timeout_s=0) is None, "and it is held"
    again = take(tmp_path / "lock", timeout_s=0)
    assert again
    again.release()


def test_another_thread_does_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def ask() -> None:
        try:
            with hold(tmp_path / "lock", timeout_s=0, guarded="it"):
                refused.append("")
        except LockTimeoutError as error:
            refused.append(error.message)

    with hold(tmp_path / "lock", timeout_s=0, guarded="it"):
        other = threading.Thread(target=ask)
        other.start()
        other.join(20)
    assert refused
    assert "it was locked by" in refused[0]


def test_an_interrupt_during_the_attempt_leaves_no_lock_and_no_blocked_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock  # noqa: PLC0415

    plain = FileLock.acquire

    def interrupted(self: FileLock, *args: object, **options: object) -> object:
        got = plain(self, *args, **options)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)
        return got

    with monkeypatch.context() as during:
        during.setattr(FileLock, "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path / "lock", timeout_s=0)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    lock = take(tmp_path / "lock", timeout_s=0)
    assert lock
    lock.release()


def test_a_look_at_a_lock_makes_no_file_and_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert is_free(path)
    assert list(tmp_path.iterdir()) == []
    lock = take(path, timeout_s=0)
    assert lock
    assert not is_free(path)
    lock.release()
    assert is_free(path)


def test_a_lock_file_of_another_file_system_with_the_same_inode_number_is_another_lock(tmp_path: Path) -> None:
    """Two homes on two tmpfs have lock files of one inode number: neither keeper is the other's."""
    path = tmp_path / "lock"
    path.touch()
    (tmp_path / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE 12 7f:7f:{path.stat().st_ino} 0 EOF\n")
    assert holder_pid(path, proc=tmp_path) is None


def test_the_device_of_the_mount_is_that_of_the_lock(tmp_path: Path) -> None:
    """btrfs and overlayfs: stat(2) gives another device than /proc/locks, /proc/self/mountinfo the same."""
    path = tmp_path / "lock"
    path.touch()
    (tmp_path / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE 12 7f:03:{path.stat().st_ino} 0 EOF\n")
    (tmp_path / "self" / "fdinfo").mkdir(parents=True)
    for number in range(1024):
        (tmp_path / "self" / "fdinfo" / str(number)).write_text("pos:\t0\nmnt_id:\t27\n")
    mounts = "26 1 0:99 / /a rw - tmpfs tmpfs rw\n27 1 127:3 / / rw - btrfs /dev/vda rw\n"
    (tmp_path / "self" / "mountinfo").write_text(mounts)
    assert holder_pid(path, proc=tmp_path) == 12
    (tmp_path / "self" / "mountinfo").write_text(mounts.replace("27 1 127:3", "27 1 127:4"))
    assert holder_pid(path, proc=tmp_path) is None
