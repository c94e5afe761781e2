"""What a service runs and ran: commands with their environments, which may hold secrets, in a private file.

builds.json, mode 0600: the builds by their hash, the rollouts that named them, and which are in quarantine.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from turnout.errors import StateUnwritableError
from turnout.system.files import Files, or_unwritable, unwritable, write_durably
from turnout.system.flock import hold

RESULTS: Final = frozenset({"", "active", "rolled_back", "aborted"})
KEPT_ROLLOUTS: Final = 200
NO_CONTEXT: Final = "-"
# However many rollouts fail in a row, there stays a build to run and one to go back to.
KEPT_GOOD_BUILDS: Final = 2
_FORMAT: Final = 1
_LOCK_TIMEOUT_S: Final = 8.0
_NO_ENV: Final[Mapping[str, str]] = MappingProxyType({})


class Build(msgspec.Struct, frozen=True):
    """What is run. Two builds are the same when all of it is the same.

    Args:
        command: the program and its arguments; ``{port}`` stands for the port.
        cwd: the absolute working directory.
        env: what is set on top of the inherited environment.
        version: whatever the operator calls it; may be empty.
        watched: a hash of what the watched files contained; may be empty.
    """

    command: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = msgspec.field(default_factory=lambda: _NO_ENV)
    version: str = ""
    watched: str = ""

    @property
    def id(self) -> str:
        """12 hexadecimal digits of a SHA-256 over all of it."""
        parts = [self.command, self.cwd, sorted(self.env.items()), self.version]
        canonical = json.dumps([*parts, self.watched] if self.watched else parts, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class Rollout(msgspec.Struct, frozen=True):
    """One rollout of a build. ``result`` is "" until it is "active", "rolled_back" or "aborted".

    ``context``: the id of its execution context; NO_CONTEXT: it had none; empty: an earlier version made it.
    """

    generation: int
    build: str
    cause: str
    ts: float
    result: str = ""
    context: str = ""


class _Quarantine(msgspec.Struct, frozen=True):
    reason: str
    generation: int


class _Format(msgspec.Struct, frozen=True):
    format: int = _FORMAT


class _Content(_Format, frozen=True):
    latest: str = ""
    considered: str = ""
    builds: dict[str, Build] = msgspec.field(default_factory=dict[str, Build])
    rollouts: tuple[Rollout, ...] = ()
    quarantine: dict[str, _Quarantine] = msgspec.field(default_factory=dict[str, _Quarantine])


class Builds:
    """One service's builds file. Every method opens, reads and closes it; writes take ``FILE.lock`` and are durable.

    Args:
        path: the file; its directory must exist by the first write.
        files: the calls to the system.

    All methods raise StateUnwritableError where the file cannot be read or written, or was damaged; a damaged file is
    moved aside, so that the next call finds an empty history. LockTimeoutError comes from those that write.
    """

    def __init__(self, path: Path, *, files: Files | None = None) -> None:
        self.path = path
        self._files = files or Files()

    # -- builds ------------------------------------------------------------------------------------------------------

    def remember(self, build: Build) -> str:
        """Keep ``build`` as the latest one and return its id."""
        build_id = build.id
        plain = msgspec.structs.replace(build, env=dict(build.env))
        self._change(lambda was: msgspec.structs.replace(was, latest=build_id, builds={**was.builds, build_id: plain}))
        return build_id

    def get(self, build_id: str) -> Build | None:
        return self._read().builds.get(build_id)

    def has_any(self) -> bool:
        """Whether a build is recorded. Read-only: a damaged file stays where it is, and counts as a record."""
        try:
            return bool(self._parse().latest)
        except (StateUnwritableError, ValueError):
            return True

    def latest(self) -> Build | None:
        """The build that was remembered last."""
        content = self._read()
        return content.builds.get(content.latest)

    def consider(self, build_id: str) -> None:
        """Note that the configuration names this build and that it was decided upon, whatever the decision was."""
        self._change(lambda was: msgspec.structs.replace(was, considered=build_id))

    def considered(self) -> str:
        """The id of the build that the configuration named when it was last decided upon; empty: never."""
        return self._read().considered

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def record_rollout(self, rollout: Rollout, build: Build | None = None) -> None:
        """Note a rollout, with its build where that may be new. The latest build stays the same."""
        _check_result(rollout.result)
        new = {rollout.build: msgspec.structs.replace(build, env=dict(build.env))} if build else {}
        self._change(
            lambda was: msgspec.structs.replace(was, rollouts=(*was.rollouts, rollout), builds={**was.builds, **new})
        )

    def set_result(self, generation: int, result: str) -> None:
        """Say how the rollout of ``generation`` ended; the newest one, should a number have come twice.

        A build that became active is the latest one from then on.
        """
        _check_result(result)

        def change(was: _Content) -> _Content:
            rollouts = list(was.rollouts)
            latest = was.latest
            for index in reversed(range(len(rollouts))):
                if rollouts[index].generation == generation:
                    rollouts[index] = msgspec.structs.replace(rollouts[index], result=result)
                    if result == "active" and rollouts[index].build in was.builds:
                        latest = rollouts[index].build
                    break
            return msgspec.structs.replace(was, rollouts=tuple(rollouts), latest=latest)

        self._change(change)

    def rollouts(self) -> tuple[Rollout, ...]:
        """What is remembered, oldest first."""
        return self._read().rollouts

    def context_of(self, build_id: str = "", *, result: str = "active") -> Rollout | None:
        """The newest rollout with a context and this result: of this build, or of any; None: there is none."""
        return next(iter(self.contexts_of(build_id, result=result)), None)

    def contexts_of(self, build_id: str = "", *, result: str = "active") -> list[Rollout]:
        """The rollouts with a context and this result, newest first: of this build, or of any."""
        return [
            rollout
            for rollout in reversed(self._read().rollouts)
            if rollout.context not in {"", NO_CONTEXT} and rollout.result == result and build_id in {"", rollout.build}
        ]

    def previous(self, current_build: str) -> Build | None:
        """The build to go back to: that of the newest rollout that stayed active and was of another build."""
        content = self._read()
        for rollout in reversed(content.rollouts):
            if rollout.result == "active" and rollout.build != current_build and rollout.build in content.builds:
                return content.builds[rollout.build]
        return None

    # -- quarantine --------------------------------------------------------------------------------------------------

    def quarantine(self, build_id: str, reason: str, generation: int) -> None:
        """Have automatic deploys skip this build from now on."""
        entry = _Quarantine(reason, generation)
        self._change(lambda was: msgspec.structs.replace(was, quarantine={**was.quarantine, build_id: entry}))

    def quarantined(self, build_id: str) -> str | None:
        """Why this build is in quarantine, or None."""
        entry = self._read().quarantine.get(build_id)
        return f"{entry.reason} (generation {entry.generation})" if entry else None

    def pardon(self, build_id: str) -> None:
        def change(was: _Content) -> _Content:
            kept = {k: entry for k, entry in was.quarantine.items() if k != build_id}
            return msgspec.structs.replace(was, quarantine=kept)

        self._change(change)

    # -- the file ----------------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[_Content], _Content]) -> None:
        with self._locked():
            was = self._load()
            now = _bounded(change(was))
            if now != was:
                write_durably(self._files, self.path, _encode(now), follows_links=False)

    def _read(self) -> _Content:
        """Without the lock: every write replaces the whole file in one step."""
        try:
            return self._parse()
        except ValueError:
            with self._locked():
                return self._load()

    def _load(self) -> _Content:
        try:
            return self._parse()
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
            with or_unwritable("move the damaged file aside", self.path):
                self._files.rename(self.path, aside)
            hint = "run the command again: the history of builds begins again, and what runs is not touched"
            problem = f"{self.path} was damaged ({error}); it was moved to {aside.name}"
            raise StateUnwritableError(problem, hint=hint) from error

    def _parse(self) -> _Content:
        try:
            data, _ = self._files.read(self.path)
        except FileNotFoundError:
            return _Content()
        except OSError as error:
            problem, path = unwritable("read", self.path, error), shlex.quote(str(self.path))
            away = f"mv {path} {path}.unreadable, which starts another history of builds"
            problem.hint = f"{problem.hint}; or: {away}" if problem.hint else away
            raise problem from error
        try:
            raw = json.loads(data)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        written_by = msgspec.convert(raw, _Format).format  # msgspec.ValidationError is a ValueError too
        if written_by > _FORMAT:
            raise StateUnwritableError(
                f"{self.path} was written by a later version of turnout (format {written_by})",
                hint="use that version for this TURNOUT_HOME",
            )
        return msgspec.convert(raw, _Content)

    def _locked(self) -> AbstractContextManager[None]:
        lock = self.path.with_name(f"{self.path.name}.lock")
        return hold(lock, timeout_s=_LOCK_TIMEOUT_S, guarded=str(self.path))


def _check_result(result: str) -> None:
    if result not in RESULTS:
        raise ValueError(f"{result!r} is no result of a rollout")


def _bounded(content: _Content) -> _Content:
    """Drop the oldest rollouts, and the builds that then nothing names."""
    rollouts = content.rollouts
    if len(rollouts) > KEPT_ROLLOUTS:
        good: dict[str, Rollout] = {}
        for rollout in reversed(rollouts):
            if rollout.result == "active" and len(good) < KEPT_GOOD_BUILDS:
                good.setdefault(rollout.build, rollout)
        newest = rollouts[-KEPT_ROLLOUTS:]
        kept = [rollout for rollout in rollouts[:-KEPT_ROLLOUTS] if rollout in good.values()]
        rollouts = (*kept, *newest)
    named = {content.latest, *(rollout.build for rollout in rollouts)}
    return msgspec.structs.replace(
        content,
        rollouts=rollouts,
        builds={k: build for k, build in content.builds.items() if k in named},
        quarantine={k: entry for k, entry in content.quarantine.items() if k in named},
    )


def _encode(content: _Content) -> bytes:
    # the standard library's: it carries bytes of an argument that are not UTF-8 (surrogateescape) there and back
    return json.dumps(msgspec.to_builtins(content), indent=1).encode() + b"\n"
