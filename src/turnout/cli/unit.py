"""What starts turnout at boot: the text of a systemd unit.

systemd starts ``turnout up``, which has the keeper started or finds it, and names it as the main process (sd_notify(3),
MAINPID). KillMode=process: whatever becomes of the keeper, the daemons, and clients connected to them, go on; the next
keeper adopts them. ``systemctl stop`` sends the keeper SIGTERM, which is ``turnout down``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from turnout.config.file import load_file
from turnout.errors import NoSuchServiceError, UsageError
from turnout.state.home import Home
from turnout.state.service import remembered
from turnout.system.verb_process import verb_argv

MARK: Final = "written by: turnout service install"
START_SLACK_S: Final = 60
STOP_SLACK_S: Final = 60  # beyond what the keeper itself waits for the verb that it runs


class UnitPlan(msgspec.Struct, frozen=True):
    """What is to be started."""

    python: str  # the interpreter that has turnout, an absolute path
    home: Path
    services: Sequence[str]  # one at least
    config: Path | None  # the configuration file, absolute; None: the settings that turnout remembers
    path: str  # the PATH on which commands are looked up
    user: str  # the user of the processes; empty: that of the manager
    start_s: float  # seconds that the slowest service may take to be up
    stop_s: float  # and to drain and stop

    def commands(self, *, recorded: bool) -> list[list[str]]:
        """One ``turnout up`` for each service; ``recorded``: after a boot the daemons are as they were deployed."""
        how = ("--recorded",) if recorded else ()
        config = ("-c", str(self.config)) if self.config else ()
        return [verb_argv(self.python, "up", *how, "--service", name, *config) for name in self.services]


def plan_of(home: Home, config: Path | None, user: str) -> UnitPlan:
    """Every service of the configuration file or, without one, those that turnout remembers.

    Raises:
        NoSuchServiceError: there is none.
    """
    if config:
        known = {name: wanted.settings for name, wanted in load_file(config).items()}
    else:
        found = {name: remembered(home.service(name)) for name in home.service_names()}
        known = {name: settings for name, settings in found.items() if settings}
    if not known:
        raise NoSuchServiceError("there is no service to start", hint="write a turnout.toml, or run turnout up")
    return UnitPlan(
        python=sys.executable,
        home=home.root,
        services=sorted(known),
        config=config.absolute() if config else None,
        path=os.environ.get("PATH", os.defpath),
        user=user,
        start_s=max(settings.start_timeout_s + settings.observe_s for settings in known.values()),
        stop_s=max(settings.drain_grace_s + settings.stop_grace_s for settings in known.values()),
    )


def systemd_unit(plan: UnitPlan) -> str:
    """The unit's text. Raises UsageError: a path that no unit can name."""
    first, *others = (_command(words) for words in plan.commands(recorded=True))
    lines = [
        f"# {MARK}",
        "[Unit]",
        "Description=turnout: zero-downtime rollouts for TCP daemons",
        "Documentation=man:systemd.service(5)",
        "",
        "[Service]",
        "# `up` is ready when every daemon serves; it names the keeper as the process to watch, and ends",
        "Type=notify",
        "NotifyAccess=all",
        f"ExecStart={first}",
        *(f"ExecStartPost={other}" for other in others),
        "ExecReload=/bin/kill -HUP $MAINPID",
        "# daemons survive a restart of the keeper and the router; to stop all of it SIGTERM is sent to the keeper",
        "KillMode=process",
        "# a daemon that the kernel kills for its memory is turnout's to restart, not a reason to stop the others",
        "OOMPolicy=continue",
        "# not after `turnout down`, which ends the keeper with 0",
        "Restart=on-failure",
        "RestartSec=1",
        f"TimeoutStartSec={round(plan.start_s) + START_SLACK_S}",
        f"TimeoutStopSec={round(plan.stop_s) + STOP_SLACK_S}",
        f"Environment={_quoted(f'TURNOUT_HOME={plan.home}')}",
        f"Environment={_quoted(f'PATH={plan.path}')}",
        *([f"User={plan.user}"] if plan.user else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if plan.user else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


def _command(words: Sequence[str]) -> str:
    """A command line for systemd.service(5): each word quoted, specifiers and variables taken literally."""
    program, *arguments = words
    if "$" in program:
        raise UsageError(f"a unit cannot start {program}: the path contains a dollar sign", hint="install it elsewhere")
    return " ".join([_quoted(program), *(_quoted(word.replace("$", "$$")) for word in arguments)])


def _quoted(word: str) -> str:
    r"""One word in double quotes, ``\`` and ``"`` escaped (systemd.syntax(7)), ``%`` doubled (systemd.unit(5))."""
    if any(ord(char) < 32 or ord(char) == 127 for char in word):
        raise UsageError(f"a unit cannot name {word!r}: it has a control character", hint="rename it")
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
