"""A lock is never lost: not to an interrupt, and not to the thread that has it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from turnout.errors import LockTimeoutError
from turnout.system.flock import hold, take


def test_a_thread_gets_what_an_interrupt_made_it_forget(tmp_path: Path) -> None:
    """Ctrl-C comes when the lock is taken and the with block has not begun: nobody will ever leave that block."""
    abandoned = hold(tmp_path / "lock", timeout_s=0, what="it")
    abandoned.__enter__()  # as the with statement does, which is then interrupted
    with hold(tmp_path / "lock", timeout_s=0, what="it"):
        assert take(tmp_path / "lock", timeout_s=0) is None, "and it is held"
    again = take(tmp_path / "lock", timeout_s=0)
    assert again
    again.release()


def test_another_thread_does_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def ask() -> None:
        try:
            with hold(tmp_path / "lock", timeout_s=0, what="it"):
                refused.append("")
        except LockTimeoutError as error:
            refused.append(error.message)

    with hold(tmp_path / "lock", timeout_s=0, what="it"):
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

    monkeypatch.setattr(FileLock, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "lock", timeout_s=0)
    monkeypatch.undo()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    lock = take(tmp_path / "lock", timeout_s=0)
    assert lock
    lock.release()
