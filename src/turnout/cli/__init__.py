"""The command line: one short file a verb. Data goes to stdout, progress to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

import click

from turnout import __version__
from turnout.cli import (
    attach,
    bench,
    demo,
    deploy,
    down,
    drain,
    history,
    logs,
    pause,
    refresh,
    registry,
    rollback,
    router,
    service,
    start,
    status,
    stop,
    up,
)
from turnout.errors import InterruptedByUserError, TurnoutError


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="State lies under TURNOUT_HOME (default: the user's state directory). See also: turnout VERB --help",
)
@click.version_option(__version__, prog_name="turnout")
def cli() -> None:
    r"""Zero-downtime rollouts for any TCP daemon behind one fixed address.

    \b
    turnout up -- redis-server --port {port} --save ''   start it behind 127.0.0.1:47777
    turnout deploy -- ./new-server --port {port}         switch to another, watched, put back when it is bad
    turnout status                                       who serves, and how it is
    turnout demo                                         see all of it in 15 seconds
    """


for _command in (
    up.up,
    down.down,
    start.start,
    stop.stop,
    refresh.refresh,
    deploy.deploy,
    rollback.rollback,
    attach.attach,
    attach.detach,
    pause.pause,
    pause.resume,
    drain.drain,
    status.status,
    logs.logs,
    history.history,
    registry.registry,
    router.router,
    service.service,
    demo.demo,
    bench.bench,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point: every error is one line that says what and why, then ``hint:``; the exit code tells its kind."""
    _open_standard_descriptors()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except TurnoutError as error:
        _show(error)
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        _show(InterruptedByUserError("interrupted", hint="turnout status tells how things stand"))
        code = InterruptedByUserError.exit_code
    except BrokenPipeError:  # the reader of our output has gone; what is buffered must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _open_standard_descriptors() -> None:
    """Started with some of them closed, the next file opened would be our stdout, and what we start would write there.

    open(2): the lowest number that is free is taken.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(error: TurnoutError) -> None:
    if "--json" in sys.argv:
        said = {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        print(json.dumps(said))
        return
    if error.detail:
        print(*(f"  | {line}" for line in error.detail.splitlines()), sep="\n", file=sys.stderr)
    print(f"turnout: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
