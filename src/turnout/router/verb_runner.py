"""Verbs that the router starts by itself: what needs the lifecycle lock runs in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

import msgspec

from turnout.errors import (
    REPORT_FD,
    CandidateError,
    ConflictError,
    NoSuchServiceError,
    NotBegunError,
    NotRunningError,
    RolledBackError,
    SpawnError,
    StateUnwritableError,
    TimedOutError,
    TurnoutError,
    UsageError,
)
from turnout.state.home import Home
from turnout.system.interpreters import Interpreters

SLACK_S: Final = 60.0  # for the lock, a keeper and a router on their way, and a slow machine
POLL_S: Final = 0.02
KILLED_S: Final = 5.0  # for a killed verb to be gone; one whose file system hangs is not waited for
REPORT_BYTES: Final = 64 * 1024


def _names(*kinds: type[TurnoutError]) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in kinds)


_DAEMONS: Final = _names(CandidateError, RolledBackError)
_SENSELESS: Final = _names(UsageError, NoSuchServiceError) | {"ConfigError"}
_MACHINES: Final = _names(NotBegunError, StateUnwritableError, NotRunningError, TimedOutError)


class VerbExit(msgspec.Struct, frozen=True):
    """How a verb ended.

    Args:
        code: its exit code (:mod:`turnout.errors`); negative: the signal that it was killed by.
        error: the class of its error; empty: none, or it did not get so far as to report it.
        message: what that says.
    """

    code: int
    error: str = ""
    message: str = ""

    @property
    def busy(self) -> bool:
        """Another verb or rollout is at work."""
        return self.code == ConflictError.exit_code

    @property
    def blames_machine(self) -> bool:
        """Whether it failed for a reason of the machine, not of the daemon: a full disk, no process to be had."""
        return self.code < 0 or self.error in _MACHINES

    @property
    def began(self) -> bool:
        """Whether a daemon was started, healthy or not; a request that can never succeed counts as started, too.

        A daemon that has run before does not become a crash by a command that is not found, a full disk or a verb that
        ended without a word.
        """
        return self.code == 0 or self.error in _DAEMONS or self.error in _SENSELESS

    @property
    def why(self) -> str:
        """Why it failed, in one line."""
        if self.message:
            return self.message
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"
        return f"the verb {how}"


class VerbRunner(msgspec.Struct, frozen=True):
    """Runs verbs of the command line for one service. Owns nothing.

    Args:
        threads: where verbs are started: the interpreter's file system may hang, and a fork takes its time.
        within_s: answers the seconds that a verb's own work may take; the verb is killed a minute later.
    """

    home: Home
    service: str
    interpreters: Interpreters
    threads: Executor
    within_s: Callable[[], float]

    async def run(self, verb: str, *flags: str) -> VerbExit:
        """Run ``turnout VERB --automatic``, whose output goes to the router's log. Exit code 124: it was killed."""
        starting = _Start(
            self.interpreters,
            ("-P", "-m", "turnout", verb, "--automatic", "--service", self.service, *flags),
            # in the directory of this process, which is the home: entering it again could hang
            {**os.environ, "TURNOUT_HOME": str(self.home.root)},
        )
        started: _Started | None = None
        try:
            async with asyncio.timeout(self.within_s() + SLACK_S):
                running = await asyncio.get_running_loop().run_in_executor(self.threads, starting.run)
                started = running
                return _result(await _exit_code(running.process), running.report)
        except TimeoutError:
            if started is None:
                why = f"the file system of {self.interpreters.newest} does not answer"
                return VerbExit(1, "NotBegunError", f"cannot run turnout {verb}: {why}")
            started.process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    await _exit_code(started.process)
            why = f"turnout {verb} did not end in time, and was killed"
            return VerbExit(TimedOutError.exit_code, "TimedOutError", why)
        except OSError as error:  # no process, no descriptor, no thread to be had
            return VerbExit(1, "NotBegunError", f"cannot run turnout {verb}: {error.strerror}")
        except SpawnError as error:  # no interpreter is left
            return VerbExit(1, "NotBegunError", f"cannot run turnout {verb}: {error.message}")
        finally:
            starting.give_up()


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; answers its exit code. Takes no descriptor and no thread, since none may be had."""
    while (code := process.poll()) is None:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(POLL_S)
    return code


class _Started(NamedTuple):
    process: subprocess.Popen[bytes]
    report: int


class _Start:
    """The start of one verb, in a thread. Owns the pipe of its report.

    Args:
        args: of the interpreter.
        env: the environment, without the descriptor of the report.
    """

    def __init__(self, interpreters: Interpreters, args: Sequence[str], env: Mapping[str, str]) -> None:
        self._interpreters = interpreters
        self._args = args
        self._env = env
        self._lock = threading.Lock()
        self._given_up = False
        self._report = -1

    def run(self) -> _Started:
        """Start the verb, unless it was given up while its interpreter's file system hung.

        Raises:
            SpawnError: no interpreter is left.
            OSError: no process or no descriptor to be had; ECANCELED: it was given up.
        """
        interpreter = self._interpreters.choose()
        with self._lock:
            if self._given_up:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._report, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            process = subprocess.Popen(
                (interpreter, *self._args),
                env={**self._env, REPORT_FD: str(write_end)},
                stdin=subprocess.DEVNULL,
                pass_fds=(write_end,),
                start_new_session=True,  # it survives this router: its work is half done, and it knows how to end it
            )
        finally:
            os.close(write_end)
        return _Started(process, self._report)

    def give_up(self) -> None:
        """Start nothing any more, and close what the report was read from. Never waits for a file system."""
        with self._lock:
            self._given_up = True
            if self._report >= 0:
                os.close(self._report)
                self._report = -1


def _result(code: int, report: int) -> VerbExit:
    """Build the result from the verb's report, which is in the pipe completely when the verb has ended."""
    try:
        reported: Any = json.loads(os.read(report, REPORT_BYTES))["error"]
        return VerbExit(code, str(reported["type"]), str(reported["message"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return VerbExit(code, ConflictError.__name__ if code == ConflictError.exit_code else "")
