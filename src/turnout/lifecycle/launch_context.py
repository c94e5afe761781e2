"""Chooses the execution context for the start of a daemon: that of this shell, or that recorded at a deploy.

A verb that a person types (`up`, `deploy`, `refresh`, `start`) records the shell that it is typed in. What turnout does
by itself, `rollback`, and any verb with ``--recorded`` use a record: the build's own, else the newest of the service.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from turnout.config.build_stamp import contents
from turnout.core.model import Cause
from turnout.errors import SpawnError
from turnout.state.builds import NO_CONTEXT, Build
from turnout.state.exec_context import ExecContext, capture, changed_files, derive, difference, swapped_directory
from turnout.state.service import Service
from turnout.system.command import resolve_command

SHOWN_FILES: Final = 5


class Launch(msgspec.Struct, frozen=True):
    """A context for one start."""

    context: ExecContext
    context_id: str = ""  # its id where it is recorded already; NO_CONTEXT: it is not to be recorded
    note: str = ""  # what differs from the last start, for people
    warnings: tuple[str, ...] = ()  # for operators


class Launches:
    """Chooses the context of each start that one verb makes.

    ``automatic``: no person asks; ``from_router``: the router asks, whose own environment is that of a shell of long
    ago, and never recorded; ``recorded``: a person wants the record.
    """

    def __init__(
        self, service: Service, *, automatic: bool = False, from_router: bool = False, recorded: bool = False
    ) -> None:
        self._service = service
        self._automatic = automatic
        self._from_router = from_router
        self._of_service = recorded or from_router  # where the build has no record: the newest of the service
        self._recorded = recorded

    def choose(self, build: Build, cause: Cause, generation: int | None = None) -> Launch:
        """The context to start ``build`` with; ``generation``: the rollout that is gone back to, where it was named.

        Raises:
            SpawnError: the command cannot be run.
        """
        if not (self._automatic or self._from_router or self._recorded or cause is Cause.ROLLBACK):
            return self._from_shell(build, cause)
        found = self.recorded(build, generation)
        if found and (cause is Cause.DEPLOY or self._recorded):
            return self._with_files_of_today(found, build)
        if found:
            return found
        newest = self._service.context_of() if self._of_service else None
        if newest:
            context = derive(newest, build, watch=self._watch)
            if any(rollout.build == build.id for rollout in self._service.builds.rollouts()):
                what = f"{_name(build)} has no readable record of its environment, limits and umask"
                return Launch(context, warnings=(f"{what}: it gets those of the last deploy",))
            return Launch(context, note=f"{_name(build)} is new: it gets the environment of the last deploy")
        if self._from_router:
            return self._without_record(build)
        launch = self._from_shell(build, cause)
        if cause is Cause.ROLLBACK:
            text = f"{_name(build)} has no record of its environment, limits and umask: it gets those of this shell"
            launch = msgspec.structs.replace(launch, warnings=(*self._replaced_before_records(build), text), note="")
        return launch

    def recorded(self, build: Build, generation: int | None = None) -> Launch | None:
        """The context that a build was deployed with; None: there is no record."""
        rollouts = self._service.builds.contexts_of(build.id)
        if generation is not None:
            named = [old for old in reversed(self._service.builds.rollouts()) if old.generation == generation]
            recorded = [old for old in named if old.build == build.id and old.context not in {"", NO_CONTEXT}]
            rollouts = [*recorded[:1], *rollouts]
        loaded = ((old, self._service.contexts.load(old.context)) for old in rollouts)
        rollout, context = next(((old, context) for old, context in loaded if context), (None, None))
        if rollout is None or context is None:
            return None
        warnings: list[str] = []
        if rollout is not rollouts[0]:
            damaged = f"the record of generation {rollouts[0].generation} cannot be read"
            warnings.append(f"{damaged}: {_name(build)} gets that of generation {rollout.generation}")
        runs = resolve_command(build.command, build.cwd, {**context.env, **build.env}, program=context.program)
        if runs != context.program:
            warnings.append(f"{context.program} is gone: {runs} is started in its place")
        changed = changed_files(context)
        if changed:
            warnings.append(f"the files of {_name(build)} changed since it was deployed: {_paths(changed)}")
        return Launch(msgspec.structs.replace(context, program=runs), rollout.context, warnings=tuple(warnings))

    def environ(self) -> Mapping[str, str]:
        """The environment that a command of the service is looked up with, before its build is known."""
        return (self._service.environ_of() if self._of_service else None) or os.environ

    @property
    def _watch(self) -> tuple[str, ...]:
        return self._service.settings.watch

    def _from_shell(self, build: Build, cause: Cause) -> Launch:
        warnings: list[str] = []
        try:
            context = capture(build, watch=self._watch)
        except SpawnError as error:
            # the same build again, from a shell with a poorer PATH
            known = self.recorded(build) if cause in {Cause.REFRESH, Cause.START} else None
            if known is None:
                raise
            context = capture(
                msgspec.structs.replace(build, command=(known.context.program, *build.command[1:])), watch=self._watch
            )
            warnings.append(f"{error.message}; {known.context.program} is started instead, as at the deploy")
        swapped = swapped_directory()
        if swapped and build.cwd == swapped[0]:
            warnings.append(
                f"this shell is in {swapped[0]}, and so is the daemon; {os.environ['PWD']} leads to {swapped[1]} now:"
                ' cd "$PWD" enters it'
            )
        return Launch(context, note=self._note(build, context), warnings=tuple(warnings))

    def _note(self, build: Build, context: ExecContext) -> str:
        rollout = self._service.builds.context_of()
        before = self._service.contexts.load(rollout.context) if rollout else None
        if rollout is None or before is None:
            return ""
        parts = [difference(before, context)]
        last = self._service.builds.get(rollout.build)
        if last and last.cwd != build.cwd:
            parts.append(f"directory {last.cwd} -> {build.cwd}")
        changed = changed_files(before) if last == build else []
        if changed:
            parts.append(f"files changed: {_paths(changed)}")
        differences = "; ".join(part for part in parts if part)
        return f"differs from generation {rollout.generation}: {differences}" if differences else ""

    def _with_files_of_today(self, found: Launch, build: Build) -> Launch:
        """Take the files as they are now: a deploy deploys the files that replaced the recorded ones."""
        context = derive(found.context, build, watch=self._watch)
        return Launch(msgspec.structs.replace(context, directory=found.context.directory))

    def _without_record(self, build: Build) -> Launch:
        """As 0.1 did: the environment of this process, umask and limits of the keeper. Said at the first such start."""
        context = ExecContext(resolve_command(build.command, build.cwd, {**os.environ, **build.env}), dict(os.environ))
        warned = any(rollout.context == NO_CONTEXT for rollout in self._service.builds.rollouts())
        why = (
            "has a damaged record of its environment, limits and umask"
            if self._service.builds.context_of(build.id)
            else "was deployed by an earlier version of turnout, which did not record its environment, limits and umask"
        )
        remedy = "turnout refresh records those of the shell that it is typed in"
        text = f"{_name(build)} {why}: it gets the keeper's; {remedy}"
        return Launch(context, NO_CONTEXT, warnings=() if warned else (text,))

    def _replaced_before_records(self, build: Build) -> tuple[str, ...]:
        """Warn of changed files of a build that turnout 0.1 deployed: it recorded one hash over the watched files."""
        if build.watched and self._watch and contents(self._watch) != build.watched:
            return (f"the watched files of {_name(build)} changed since it was deployed",)
        return ()


def _name(build: Build) -> str:
    return f"build {build.id}{f' (version {build.version})' if build.version else ''}"


def _paths(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN_FILES} more" if len(paths) > SHOWN_FILES else ""
    return f"{', '.join(paths[:SHOWN_FILES])}{more}"
