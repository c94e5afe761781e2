"""Runs a verb in a process of its own that is forked from a server with the command line imported.

Half of the processor time of the end-to-end tests was the import of the same modules, verb after verb.
The verb is the installed one in all else: arguments, environment, working directory, output and exit code are those of
a process that a shell started. What begins with the interpreter itself (options of Python, an import that fails) is for
tests that start ``python -m turnout``.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from turnout import cli, lifecycle
from turnout.__main__ import main

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [found.name for house in (cli, lifecycle) for found in pkgutil.iter_modules(house.__path__, f"{house.__name__}.")]
)
_ENVIRON = dict(os.environ)


def has_same_interpreter(env: Mapping[str, str]) -> bool:
    """Whether Python would begin with this environment as the server has begun."""
    return {key: env[key] for key in env if key.startswith("PYTHON")} == {
        key: _ENVIRON[key] for key in _ENVIRON if key.startswith("PYTHON")
    }


def run_forked(
    args: tuple[str, ...], *, cwd: Path, env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run ``turnout ARGS`` to its end.

    Raises:
        subprocess.TimeoutExpired: it did not end in ``timeout_s`` seconds, and was killed.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        process = _SERVER.Process(target=_be_the_verb, args=(args, str(cwd), dict(env), place))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["turnout", *args], timeout_s)
        out, err = ((place / stream).read_text() for stream in ("out", "err"))
        code = place / "code"
        returncode = int(code.read_text()) if code.exists() else process.exitcode or 0
        return subprocess.CompletedProcess(["turnout", *args], returncode, out, err)


def _be_the_verb(args: tuple[str, ...], cwd: str, env: dict[str, str], place: Path) -> None:
    """What the forked process does; its exit code goes to a file, for two threads may wait for processes at a time."""
    for fd, target in ((0, os.devnull), (1, place / "out"), (2, place / "err")):
        opened = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["turnout", *args]
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    (place / "code").write_text(str(code))
