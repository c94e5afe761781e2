"""One exception class for each reaction a caller can have.

Each carries the exit code that the command line ends with and, where there is a next step, a hint that names it.
Exit codes: 1 failed, 2 usage, 3 not running, 4 no such service, 5 deployed and rolled back, 6 lock or generation
conflict, 124 timed out, 130 interrupted.
"""

from __future__ import annotations

from typing import ClassVar, Final

REPORT_FD: Final = "TURNOUT_ERROR_FD"  # names the descriptor on which a verb reports its error to the router


class TurnoutError(Exception):
    """Something failed, and the message says what, where and why in one line.

    Args:
        message: one line, without a full stop at the end.
        hint: what to do next, or None.
        detail: further lines worth showing below it (the tail of a log), or empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(TurnoutError):
    """The command line or an argument makes no sense; nothing was tried."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or variable cannot be used as it stands."""


class NotRunningError(TurnoutError):
    """The verb needs a running keeper, router or daemon, and there is none."""

    exit_code = 3


class NoSuchServiceError(TurnoutError):
    """No configuration and no earlier run knows a service of this name."""

    exit_code = 4


class RolledBackError(TurnoutError):
    """The rollout reached the switch and the previous daemon was put back."""

    exit_code = 5


class ConflictError(TurnoutError):
    """Another verb or program changes this service, or changed it meanwhile; nothing was changed here."""

    exit_code = 6


class LockTimeoutError(ConflictError):
    """The lifecycle or registry lock was not to be had in time; the message names the holder."""


class TimedOutError(TurnoutError):
    """What was waited for did not come in time."""

    exit_code = 124


class StillRunningError(TimedOutError):
    """Processes of a daemon outlived SIGKILL: they hang in the kernel, or belong to another user."""


class InterruptedByUserError(TurnoutError):
    """Ctrl-C or SIGTERM; what was begun has been undone."""

    exit_code = 130


class AddressInUseError(TurnoutError):
    """The listen address belongs to another process, which the message names."""


class SpawnError(TurnoutError):
    """The daemon could not be started: no such command, not executable, no such directory."""


class NotBegunError(SpawnError):
    """The daemon could not be started for want of something that is not its own: a process, a descriptor, a port."""


class CandidateError(TurnoutError):
    """The candidate never became healthy, or it failed its observe window and nothing could be restored."""


class StateUnwritableError(TurnoutError):
    """The state directory or a file in it cannot be read or written: permissions, full disk, I/O error."""


class RegistryUnsupportedError(TurnoutError):
    """The registry file was written by a higher major version; it was not touched."""


class RegistryDamagedError(TurnoutError):
    """The registry file cannot be read and there is no last good copy; the damaged file was kept aside."""


class ProtocolError(TurnoutError):
    """The keeper or the router answered something that this version does not understand."""


class SteeringError(TurnoutError):
    """The kernel cannot hand connections straight to this daemon; they are relayed, and it is tried again."""
