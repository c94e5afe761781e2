"""What a client does, over and over in threads beside the test, with everything that went wrong."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator

from support import eventually

POLITE = ("nice", "-n", "15")  # a load that takes what is left of the machine: other tests run beside it
PAUSE_S = 0.05


class Repeated:
    """How often it was done, and the errors. Owned by the thread of the test; the others only add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.times = 0
        self.errors: list[str] = []

    def run(self, act: Callable[[], object]) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                act()
            except (OSError, AssertionError, subprocess.SubprocessError) as error:
                with self._lock:
                    self.errors.append(f"{type(error).__name__}: {error}")
            else:
                with self._lock:
                    self.times += 1

    def again(self, *, times: int = 1) -> None:
        """Wait until it was done so often from now on, or failed."""
        before, failed = self.times, len(self.errors)
        eventually(
            lambda: self.times >= before + times or len(self.errors) > failed,
            timeout_s=120,
            why="the clients do not get on",
        )

    def stop(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def over_and_over(act: Callable[[], object], *, clients: int = 2) -> Iterator[Repeated]:
    """Until the block ends, so many threads do it; what they have begun is finished."""
    done = Repeated()
    threads = [threading.Thread(target=done.run, args=(act,)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        done.stop()
        for thread in threads:
            thread.join(120)


def output_of(argv: list[str], **options: object) -> str:
    """What a program that must succeed prints."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload]  # passed on as they are
    assert done.returncode == 0, f"{argv[0]}: exit {done.returncode}: {done.stdout}{done.stderr}"
    return str(done.stdout)
