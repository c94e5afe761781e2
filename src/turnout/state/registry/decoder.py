"""The registry's JSON as it is read, field by field: one bad value never costs more than itself.

A bad field falls to its default and an entry that is no object is dropped; both are reported. Keys that we do not
know are kept at every level. Schema 1.x (``instances``) is read; a higher major version is refused untouched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, cast

import msgspec

from turnout.core.model import (
    SCHEMA_VERSION,
    Cause,
    Daemon,
    Deployment,
    Desired,
    DrainCause,
    Identity,
    Move,
    Snapshot,
    State,
    Workspace,
)
from turnout.core.slots import index_of, source_of
from turnout.errors import RegistryUnsupportedError
from turnout.state.registry.fields import Fields, short

MAX_DEPTH: Final = 64  # another program's data may be nested, too
_NESTING: Final = (dict, list)


class NotARegistry(ValueError):  # noqa: N818  # it names what the bytes are, not what went wrong
    """The bytes are no JSON object that could be a registry."""


class Repair(msgspec.Struct, frozen=True):
    """One thing that was dropped or repaired while reading, and where."""

    where: str
    what: str


class Decoded(msgspec.Struct, frozen=True):
    """What a registry says, and what had to be mended to understand it."""

    snapshot: Snapshot
    report: tuple[Repair, ...] = ()


# The entries of the last reading, by section and key: the JSON, which tells 1 from true and 1.0 as Python's comparison
# does not, and the entry. An entry that comes again is not read again, and is the same object: between two versions of
# a registry with thousands of entries a few have changed. Mended entries are not kept: each reading is to report them.
EntryCache = dict[str, dict[str, tuple[bytes, Any]]]


def loads(data: bytes, *, good: Snapshot | None = None, cache: EntryCache | None = None) -> Decoded:
    """Read the bytes of a registry file.

    Args:
        data: the file's content.
        good: the last good copy, which knows the deployment block if the file has lost it.
        cache: the entries of earlier readings of the same registry; those of this reading are put in their place.

    Raises:
        NotARegistry: not UTF-8, not JSON, not an object, duplicated keys, nested too deep.
        RegistryUnsupportedError: written by a higher major version.
    """
    report: list[Repair] = []
    if data.startswith(b"\xef\xbb\xbf"):
        report.append(Repair("the file", "starts with a byte order mark"))
        data = data[3:]
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise NotARegistry(f"no JSON: {error}") from error
    if _is_deeper(raw, MAX_DEPTH):
        raise NotARegistry(f"nested deeper than {MAX_DEPTH} levels")
    decoded = decode(raw, good=good, cache=cache)
    return Decoded(decoded.snapshot, (*report, *decoded.report))


def decode(raw: object, *, good: Snapshot | None = None, cache: EntryCache | None = None) -> Decoded:
    """Read a registry that is parsed already. Arguments and errors as of :func:`loads`."""
    root = _object(raw)
    if root is None:
        raise NotARegistry(f"the root is no object but {type(raw).__name__}")
    return _Reader({} if cache is None else cache).snapshot(root, good)


def _object(raw: object) -> dict[str, Any] | None:
    """A copy of a JSON object; None for anything else."""
    if not isinstance(raw, dict):
        return None
    found = cast("dict[Any, Any]", raw)  # type: ignore[redundant-cast]  # pyright knows less of it than mypy
    return dict(found)


def _is_deeper(raw: object, levels: int) -> bool:
    """Whether a JSON value is nested deeper than that: what can be read must be possible to write again."""
    layer: list[Any] = [raw]
    for _ in range(levels):
        inner: list[Any] = []
        for value in layer:
            if isinstance(value, dict):
                inner += [each for each in cast("dict[str, Any]", value).values() if isinstance(each, _NESTING)]
            elif isinstance(value, list):
                members = cast("list[Any]", value)  # type: ignore[redundant-cast]  # pyright knows less than mypy
                inner += [each for each in members if isinstance(each, _NESTING)]
        if not inner:
            return False
        layer = inner
    return True


def _shape(entry: object) -> bytes | None:
    """The entry as bytes that no other entry has; None where msgspec cannot make them (encoding.dumps)."""
    try:
        return msgspec.json.encode(entry)
    except (UnicodeEncodeError, OverflowError):
        return None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


class _Reader:
    def __init__(self, cache: EntryCache) -> None:
        self._report: list[Repair] = []
        self._cache = cache

    def _say(self, where: str, repair: str) -> None:
        self._report.append(Repair(where, repair))

    def snapshot(self, raw: dict[str, Any], good: Snapshot | None) -> Decoded:
        version = raw.pop("version", SCHEMA_VERSION)
        if not isinstance(version, str | int | float) or isinstance(version, bool):
            self._say("version", f"{short(version)} became {SCHEMA_VERSION}")
            version = SCHEMA_VERSION
        major = str(version).partition(".")[0]
        if major.isdecimal() and int(major) > int(SCHEMA_VERSION.partition(".")[0]):
            raise RegistryUnsupportedError(
                f"the registry has version {version}, this turnout knows up to {SCHEMA_VERSION}; it was not touched",
                hint="upgrade turnout",
            )
        daemons = self._entries(raw, "daemons", self._daemon)
        workspaces = self._entries(raw, "workspaces", self._workspace)
        if "instances" in raw and not daemons:
            daemons, workspaces = self._migrate(raw.pop("instances"))
        block_raw = raw.pop("deployment", None)
        snapshot = Snapshot(daemons, workspaces, Deployment(), SCHEMA_VERSION, raw)
        block = _object(block_raw)
        if block is not None:
            snapshot = replace(snapshot, deployment=self._deployment(block))
        elif good is not None:
            self._say("deployment", "missing; taken from the last good copy")
            back = {b: d for b, d in good.daemons.items() if b in good.deployment.named and b not in daemons}
            snapshot = replace(snapshot, daemons={**daemons, **back}, deployment=good.deployment)
        elif block_raw is not None:
            self._say("deployment", f"{short(block_raw)} is no object")
        return Decoded(snapshot, tuple(self._report))

    def _entries(self, raw: dict[str, Any], key: str, read: Callable[[str, dict[str, Any]], Any]) -> dict[str, Any]:
        given = raw.pop(key, None)
        section = _object(given)
        if section is None:
            if given is not None:
                self._say(key, f"{short(given)} is no object")
            return {}
        entries: dict[str, Any] = {}
        before, after = self._cache.get(key, {}), dict[str, tuple[bytes, Any]]()
        for name, value in section.items():
            shape = _shape(value)
            known = before.get(name)
            if known is not None and known[0] == shape:
                entries[name], after[name] = known[1], known
                continue
            entry = _object(value)
            if entry is None:
                self._say(f"{key}.{name}", f"{short(value)} is no object: dropped")
                continue
            mended = len(self._report)
            entries[name] = read(name, entry)
            if shape is not None and len(self._report) == mended:
                after[name] = shape, entries[name]
        self._cache[key] = after
        return entries

    def _daemon(self, boot_id: str, raw: dict[str, Any]) -> Daemon:
        fields = Fields(f"daemons.{boot_id}", raw, self._say)
        return Daemon(
            boot_id,
            host=fields.text("host", "127.0.0.1"),
            port=fields.port("port"),
            identity=self._identity(fields),
            start_ts=fields.number("start_ts"),
            last_seen_ts=fields.number("last_seen_ts"),
            draining=fields.flag("draining"),
            drain_cause=fields.enum("drain_cause", DrainCause, DrainCause.NONE),
            version=fields.text("version"),
            build=fields.text("build"),
            owned=fields.flag("owned"),
            proxy_protocol=fields.text("proxy_protocol"),
            own_port=fields.port("own_port"),
            source=source_of(index_of(fields.text("source"))),
            http_host=fields.maybe_text("http_host"),
            http_port=fields.maybe_port("http_port"),
            http_pid=fields.maybe_count("http_pid"),
            extra=fields.rest(),
        )

    @staticmethod
    def _identity(fields: Fields) -> Identity:
        return Identity(
            fields.count("pid"), fields.count("start_ticks"), fields.text("machine_boot_id"), fields.count("pid_ns")
        )

    def _workspace(self, root: str, raw: dict[str, Any]) -> Workspace:
        fields = Fields(f"workspaces.{root}", raw, self._say)
        return Workspace(
            root,
            boot_id=fields.text("boot_id"),
            last_active_ts=fields.number("last_active_ts"),
            http_host=fields.maybe_text("http_host"),
            http_port=fields.maybe_port("http_port"),
            http_pid=fields.maybe_count("http_pid"),
            extra=fields.rest(),
        )

    def _deployment(self, raw: dict[str, Any]) -> Deployment:
        fields = Fields("deployment", raw, self._say)
        owner = _object(fields.take("owner"))
        moves = fields.take("moves")
        block = Deployment(
            generation=fields.count("generation"),
            state=fields.enum("state", State, State.IDLE),
            active_boot_id=fields.text("active_boot_id"),
            candidate_boot_id=fields.text("candidate_boot_id"),
            old_boot_id=fields.text("old_boot_id"),
            switch_ts=fields.number("switch_ts"),
            health_fail_streak=fields.count("health_fail_streak"),
            rollback_reason=fields.text("rollback_reason"),
            revision=fields.count("revision"),
            cause=fields.enum("cause", Cause, Cause.DEPLOY),
            desired=fields.enum("desired", Desired, Desired.RUNNING),
            owner=Identity() if owner is None else self._identity(Fields("deployment.owner", owner, self._say)),
            owner_holds_lock=fields.flag("owner_holds_lock"),
            moves=self._moves(moves),
            extra=fields.rest(),
        )
        return self._coherent(block)

    def _coherent(self, block: Deployment) -> Deployment:
        """What a program that knows nothing of rollouts may have left contradicting itself; ours never does."""
        active, state = block.active_boot_id, block.state
        observed = state is State.SWITCHED and bool(active) and block.old_boot_id not in {"", active}
        carried = block.in_flight and block.candidate_boot_id not in {"", active}
        retired = carried and not active and block.old_boot_id != block.candidate_boot_id
        if state is not State.IDLE and not observed and not carried:
            self._say("deployment.state", f"{state} contradicts the daemons that are named: became idle")
            block = replace(block, state=State.IDLE)
        if block.old_boot_id and not observed and not retired:
            self._say("deployment.old_boot_id", f"{short(block.old_boot_id)} stands outside an observe window: dropped")
            block = replace(block, old_boot_id="")
        if block.candidate_boot_id and not carried:
            self._say("deployment.candidate_boot_id", f"{short(block.candidate_boot_id)} is not on its way: dropped")
            block = replace(block, candidate_boot_id="")
        return replace(block, moves=()) if block.moves and not observed else block

    def _moves(self, raw: object) -> tuple[Move, ...]:
        if raw is None:
            return ()
        if not isinstance(raw, list):
            self._say("deployment.moves", f"{short(raw)} is no list")
            return ()
        moves: list[Move] = []
        given = cast("list[Any]", raw)  # type: ignore[redundant-cast]  # as above
        for index, value in enumerate(given):
            entry = _object(value)
            if entry is None:
                self._say(f"deployment.moves[{index}]", "no object: dropped")
                continue
            fields = Fields(f"deployment.moves[{index}]", entry, self._say)
            root, boot_id = fields.text("root"), fields.text("boot_id")
            http = fields.maybe_text("http_host"), fields.maybe_port("http_port"), fields.maybe_count("http_pid")
            moves.append(Move(root, boot_id, *http))
        return tuple(moves)

    def _migrate(self, instances: object) -> tuple[dict[str, Daemon], dict[str, Workspace]]:
        """Schema 1.x: one daemon for each workspace root."""
        daemons: dict[str, Daemon] = {}
        workspaces: dict[str, Workspace] = {}
        found = _object(instances)
        if found is None:
            self._say("instances", f"{short(instances)} is no object")
            return daemons, workspaces
        for root, value in found.items():
            entry = _object(value)
            if entry is None:
                self._say(f"instances.{root}", "no object: dropped")
                continue
            daemon = self._daemon("", entry)
            boot_id = f"legacy-{daemon.pid}-{daemon.port}"
            daemons[boot_id] = replace(daemon, boot_id=boot_id)
            workspaces[root] = Workspace(root, boot_id)
        self._say("instances", f"{len(daemons)} entries of schema 1 became daemons")
        return daemons, workspaces
