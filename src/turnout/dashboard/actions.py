"""What the page may do: verbs of the command line, each as a child process. There is no second way to change things.

``--if-generation`` names the generation that the page has shown, so that a later rollout is not overtaken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import msgspec

from turnout.core.json_text import json_text
from turnout.dashboard.frame import ActionView, Fault, Preview
from turnout.errors import ConflictError, UsageError

# after the switch the router watches on, and the page shows what it finds: no child has to wait for it.
# --recorded: the shell that the dashboard was started in is not the one that the service was deployed from
VERBS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "deploy": ("--detach", "--recorded"),
        "rollback": ("--detach",),
        "pause": (),
        "resume": (),
        "drain": (),
    }
)
PREVIEW_S: Final = 20.0
MOST_PREVIEWS: Final = 2
UNDO_S: Final = 15.0
LINES_KEPT: Final = 60
LINE_CHARS: Final = 400
READ_BYTES: Final = 4096
log = logging.getLogger("turnout.dashboard")


class Actions:
    """Runs verbs, one for each service at a time. Owns the child processes and the tasks that wait for them.

    Args:
        command: the program and what stands before every verb.
        common: further arguments of every verb, the configuration file for one.
        deadline_s: by a service's name, how many seconds a verb may take; then it is interrupted and undoes its work.
        publish: gets the newest action of every service, as JSON, whenever one changes.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        common: Sequence[str] = (),
        deadline_s: Callable[[str], float],
        publish: Callable[[bytes], None],
    ) -> None:
        self._command = tuple(command)
        self._common = tuple(common)
        self._deadline_s = deadline_s
        self._publish = publish
        self._newest: dict[str, ActionView] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._number = 0
        self._previews = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Actions may be begun inside the with block; at its end those under way are interrupted, and have ended."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks.values():
                    task.cancel()

    def begin(self, service: str, verb: str, generation: int) -> ActionView:
        """Start a verb.

        Args:
            service: its name.
            verb: one of VERBS.
            generation: the one that the page has shown.

        Raises:
            UsageError: there is no such verb here.
            ConflictError: another is under way for this service, or the dashboard is about to end.
        """
        argv = self._argv(service, verb, generation)
        running = self._newest.get(service)
        if service in self._tasks and running:
            raise ConflictError(f"{running.verb} is under way for {service}", hint="wait until it is done")
        if self._group is None:
            raise ConflictError("the dashboard is about to end")
        self._number += 1
        action = ActionView(
            number=self._number, verb=verb, state="running", lines=[], fault=None, began_ts=time.time(), ended_ts=None
        )
        log.info("%s of %s at generation %d", verb, service, generation)
        self._show(service, action)
        task = self._group.create_task(self._carry(service, action, argv))
        self._tasks[service] = task
        task.add_done_callback(lambda _: self._tasks.pop(service, None))
        return action

    async def preview(self, service: str, verb: str, generation: int) -> Preview:
        """What a verb would do; nothing changes. Raises as :meth:`begin`."""
        argv = [*self._argv(service, verb, generation), "--dry-run"]
        if self._previews >= MOST_PREVIEWS:
            raise ConflictError("other previews are under way", hint="try again in a moment")
        self._previews += 1
        try:
            lines: deque[str] = deque(maxlen=LINES_KEPT)
            code = await self._run(argv, lines.append, PREVIEW_S)
        finally:
            self._previews -= 1
        shown, fault = _outcome(lines, code)
        return Preview(lines=shown, fault=fault)

    def _argv(self, service: str, verb: str, generation: int) -> list[str]:
        if verb not in VERBS:
            raise UsageError(f"the dashboard has no {verb!r}", hint=f"it has {', '.join(VERBS)}")
        fence = ("--if-generation", str(generation))
        return [*self._command, verb, *self._common, "--service", service, *VERBS[verb], *fence]

    def _show(self, service: str, action: ActionView) -> None:
        self._newest[service] = action
        self._publish(json_text(self._newest).encode())

    async def _carry(self, service: str, action: ActionView, argv: Sequence[str]) -> None:
        lines: deque[str] = deque(maxlen=LINES_KEPT)

        def on_line(line: str) -> None:
            lines.append(line)
            self._show(service, msgspec.structs.replace(action, lines=list(lines)))

        code = await self._run(argv, on_line, self._deadline_s(service))
        shown, fault = _outcome(lines, code)
        ended = "none: its time was over" if code is None else code
        log.info("%s of %s ended with exit code %s", action.verb, service, ended)
        state, now = "failed" if fault else "done", time.time()
        self._show(service, msgspec.structs.replace(action, state=state, lines=shown, fault=fault, ended_ts=now))

    async def _run(self, argv: Sequence[str], on_line: Callable[[str], None], deadline_s: float) -> int | None:
        """Run to the end, and give each line to ``on_line``; the exit code, None: it was ended at its deadline."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "NO_COLOR": "1"},
                start_new_session=True,  # Ctrl-C in our terminal is ours to pass on
            )
        except OSError as error:
            on_line(f"turnout: cannot start a process: {error.strerror}")
            return 1
        assert process.stdout
        try:
            async with asyncio.timeout(deadline_s):
                await _read_lines(process.stdout, on_line)
                return await process.wait()
        except TimeoutError:
            on_line(f"turnout: not done within {deadline_s:g} s, and interrupted")
            return None
        finally:
            await _end(process)


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    rest = b""
    while chunk := await stream.read(READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        rest = rest[: 4 * LINE_CHARS]
        for line in whole:
            on_line(line.decode(errors="replace")[:LINE_CHARS])
    if rest:
        on_line(rest.decode(errors="replace")[:LINE_CHARS])


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupt a verb that still runs: it undoes what it has begun. One that does not end is killed with its group."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(UNDO_S):
            await process.wait()
    except TimeoutError:
        # not waited for yet, so the number is still its group's own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _outcome(lines: Sequence[str] | deque[str], code: int | None) -> tuple[list[str], Fault | None]:
    """A verb's output without its error, and the error; the command line promises one line and ``hint:``."""
    shown = [line for line in lines if not line.startswith(("turnout: ", "hint: "))]
    if code == 0:
        return shown, None
    message = next((line for line in reversed(lines) if line.startswith("turnout: ")), f"turnout: exit code {code}")
    hint = next((line for line in reversed(lines) if line.startswith("hint: ")), None)
    return shown, Fault(message=message.removeprefix("turnout: "), hint=hint.removeprefix("hint: ") if hint else None)
