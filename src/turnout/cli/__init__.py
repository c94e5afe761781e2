"""The command line: one short file a verb. Data goes to stdout, progress to stderr."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click

from turnout import __version__
from turnout.cli.commands import LazyGroup
from turnout.cli.error_output import complain, from_click, wants_json
from turnout.cli.streams import guard_streams
from turnout.errors import InterruptedByUserError, TurnoutError, UsageError

INTERRUPT_AGAIN_S = 0.01

EXAMPLES = """
\b
Examples:
  turnout up -- redis-server --port {port} --save ''   start it behind 127.0.0.1:47777
  turnout deploy -- ./new-server --port {port}         switch to another, watched, put back when it is bad
  turnout status                                       who serves, and how it is
  turnout doctor                                       what is wrong, and what to type
  turnout demo                                         see all of it in 15 seconds

State lies under TURNOUT_HOME (default: the user's state directory). See also: turnout VERB --help
"""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXAMPLES,
)
@click.version_option(__version__, prog_name="turnout")
def cli() -> None:
    """Zero-downtime rollouts for any TCP daemon behind one fixed address."""


def main() -> None:
    """Entry point: every error is one line that says what and why, then ``hint:``; the exit code tells its kind."""
    _open_standard_descriptors()
    guard_streams()
    sys.unraisablehook = _again_if_interrupted
    as_json = wants_json(sys.argv[1:])
    try:
        _take_signals()
        code = cli.main(prog_name="turnout", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        complain(from_click(error), as_json=as_json)
        code = error.exit_code
    except TurnoutError as error:
        complain(error, as_json=as_json)
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that comes twice must not end the ending
        complain(InterruptedByUserError("interrupted", hint="turnout status tells how things stand"), as_json=as_json)
        _leave(InterruptedByUserError.exit_code)
    except FileNotFoundError:
        from turnout.state.definition import working_directory  # noqa: PLC0415  # for this error alone

        if working_directory():
            raise
        where = "the working directory was deleted: a command, or a file of this name, cannot be found from here"
        complain(UsageError(where, hint="cd to a directory that is there"), as_json=as_json)
        code = UsageError.exit_code
    except BrokenPipeError:  # the reader of our output has gone; what is buffered must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _take_signals() -> None:
    """From :mod:`turnout.__main__`, which had them during the imports. An interrupt that is ignored stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


def _open_standard_descriptors() -> None:
    """Started with some of them closed, the next file opened would be our stdout, and what we start would write there.

    open(2): the lowest number that is free is taken.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # the interpreter has no stream for a descriptor that was closed when it began (sys.stdout is None)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    if not sys.stdout:
        sys.stdout = os.fdopen(1, "w")
        print("warning: standard output is closed: what this verb prints is lost (>/dev/null)", file=sys.stderr)


def _leave(code: int) -> NoReturn:
    """End with this code. An interrupt that met an exec() of source text has the interpreter end by SIGINT at its exit.

    (``unhandled_keyboard_interrupt`` in CPython's pythonrun.c is set there and never taken back; every import of a
    dataclass is such a place.) Everything that is to be undone has been by now: the exception came up to here.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _again_if_interrupted(lost: sys.UnraisableHookArgs) -> None:
    """An interrupt that fell into a callback of the interpreter's own (each import has one) is ignored there.

    It is sent once more a moment later, when that callback is over: as a signal, since the main thread may be in a wait
    by then, which ``_thread.interrupt_main()`` does not end.
    """
    if lost.exc_type is KeyboardInterrupt:
        import threading  # noqa: PLC0415  # only then

        again = threading.Timer(INTERRUPT_AGAIN_S, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
