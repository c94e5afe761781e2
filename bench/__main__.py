"""``python -m bench VERB``: compare two contenders, run the guard, profile, write the report."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

from bench.arena import BenchError

VERBS = {
    "compare": "two contenders beside each other, case by case",
    "profile": "system calls for each exchange and connection, side by side",
    "report": "RESULTS.md and the plots from what a run recorded",
    "guard": "what got slower since the baseline was recorded",
}


def main() -> int:
    signal.signal(signal.SIGTERM, interrupt)
    verb, *rest = sys.argv[1:] or [""]
    if verb not in VERBS:
        print("python -m bench VERB [--help]", *(f"  {name:8} {told}" for name, told in VERBS.items()), sep="\n")
        return 2
    try:
        code: int = importlib.import_module(f"bench.{verb}").main(rest)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has gone, and what is buffered must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """The way out is that of Ctrl-C: everything that was started is ended on it."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
