"""Starts a keeper where none runs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import Final

from turnout import errors
from turnout.control.keeper_client import KeeperClient
from turnout.control.keeper_watchdog import end_silent_keeper
from turnout.errors import NotRunningError
from turnout.state.home import Home
from turnout.system.boot_processes import LABEL
from turnout.system.files import open_private, undone_on_error, unwritable
from turnout.system.spawn_record import read_records

START_TIMEOUT_S: Final = 15.0
LOG_BOUND_BYTES: Final = 4 * 1024 * 1024


def ensure_keeper(home: Home) -> KeeperClient:
    """The running keeper, started where there is none; it outlives this process and its terminal.

    One that has been silent for five seconds is replaced.

    Raises:
        StateUnwritableError: the state directory cannot be used.
        NotBegunError: no process is to be had for it.
        NotRunningError: there is none, and this process is one of an activated daemon.
        TimedOutError: it did not answer in time.
    """
    end_silent_keeper(home)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client = KeeperClient.connect(home)
        except NotRunningError:
            pass
        else:
            try:
                with undone_on_error(client.close):
                    client.hello()
            except (NotRunningError, OSError):  # it was on its way out; a new one takes its place
                pass
            else:
                return client
        if time.monotonic() > deadline:
            raise errors.TimedOutError(f"no keeper within {START_TIMEOUT_S:g} s", hint=f"see {home.keeper_log}")
        _check_unfiltered(home)
        _start(home, deadline)


def _check_unfiltered(home: Home) -> None:
    """Raises NotRunningError: a keeper started from here would be under a daemon's filter, and wait for itself."""
    boot_id = os.environ.get(LABEL, "")
    names = [*home.service_names(), *home.services_without_settings()] if boot_id else []
    for name in names:
        record = read_records(home.service(name).records).get(boot_id)
        if record and record.held_fds:
            raise NotRunningError(
                f"no keeper runs, and a daemon of {name}, which is activated, cannot start one",
                hint="turnout up from a process that is not the daemon's",
            )


def _start(home: Home, deadline: float) -> None:
    """Start one; losing the race for the lock to another verb's keeper is fine, it is found by the next look."""
    home.create()
    _prove_files(home)
    _bound_log(home)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    try:
        log = open_private(home.keeper_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        os.close(ready_read)
        os.close(ready_write)
        raise unwritable("write", home.keeper_log, error) from error
    try:
        # -P: a file named like one of ours in the working directory must not be imported in its place
        subprocess.Popen(
            [sys.executable, "-P", "-m", "turnout.keeper", str(home.root), str(ready_write)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            pass_fds=(ready_write,),
            # a keeper that is started from within some daemon is no part of that
            env={key: value for key, value in os.environ.items() if key != LABEL},
        )
    except OSError as error:  # no process to be had, or the interpreter is gone
        os.close(ready_read)
        raise errors.NotBegunError(f"cannot start a keeper: {error.strerror}", hint="ulimit -u") from error
    finally:
        os.close(log)
        os.close(ready_write)
    try:
        poller = select.poll()
        poller.register(ready_read, select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)  # ready, or its end of the pipe closed: it ended
    finally:
        os.close(ready_read)


def _prove_files(home: Home) -> None:
    """Find out here what the keeper and the router would write to their logs alone, and this verb wait for in vain."""
    for path in (home.keeper_lock, home.router_lock, home.router_log):
        try:
            os.close(open_private(path, os.O_RDWR))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unwritable("open", path, error) from error


def _bound_log(home: Home) -> None:
    try:
        if home.keeper_log.stat().st_size > LOG_BOUND_BYTES:
            home.keeper_log.replace(home.keeper_log.with_suffix(".log.1"))
    except OSError:
        return
