"""The configuration file, ``turnout.toml``: where it is found, what may stand in it, and what that asks for."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import GenericAlias
from typing import Any, Final, cast

import msgspec

from turnout.config.keys import BUILD, KEYS, REMOVED_KEYS, Key
from turnout.config.settings import Health, Scrape, ServiceRequest, Settings, fit, takes_listener, with_part
from turnout.config.validation import check, check_env
from turnout.config.values import parse_address
from turnout.errors import ConfigError, UsageError
from turnout.system.files import Files
from turnout.system.user_directory import user_directory

MAX_BYTES: Final = 1 << 20
FILE_NAME: Final = "turnout.toml"
ALL_KEYS: Final = "every key: turnout schema file"


def _struct(name: str, fields: Sequence[tuple[str, Any, Any]]) -> type[msgspec.Struct]:
    return msgspec.defstruct(name, fields, module=__name__, forbid_unknown_fields=True, kw_only=True)


def _service_structs() -> dict[str, type[msgspec.Struct]]:
    """The table of a service as TOML has it, called ``service``, and the tables that stand in it."""
    made: dict[str, type[msgspec.Struct]] = {}
    fields: list[tuple[str, Any, Any]] = []
    for table, rows in groupby(KEYS.values(), lambda key: key.table):
        own = [(key.last, key.kind.written | None if key.named else key.kind.written, key.default) for key in rows]
        if table:
            made[table] = _struct(f"_Raw{table.title()}", own)
            own = [(table, made[table], msgspec.field(default_factory=made[table]))]
        fields += own
    return {"service": _struct("_RawService", fields), **made}


class _RawMetrics(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    listen: str
    expose: bool = False


_SERVICE: Final = _service_structs()
_RawFile: Final = _struct(
    "_RawFile", [("service", GenericAlias(dict, (str, _SERVICE["service"])), {}), ("metrics", _RawMetrics | None, None)]
)
_TABLES: Final[Mapping[str, type[msgspec.Struct]]] = {"": _RawFile, **_SERVICE, "metrics": _RawMetrics}


def find_file(named: str | None) -> Path | None:
    """The configuration file: the one named, else ./turnout.toml, the user's, the system's; None where there is none.

    Raises:
        ConfigError: the named one does not exist.
    """
    if named:
        path = Path(named)
        if not path.exists():
            raise ConfigError(f"no configuration file {named}", hint="check -c or TURNOUT_CONFIG")
        if not path.is_file():
            raise ConfigError(f"{named} is no regular file", hint="check -c or TURNOUT_CONFIG")
        return path
    places = [Path(FILE_NAME), Path("/etc/turnout") / FILE_NAME]
    with suppress(UsageError):  # a user without a home directory has no file there
        base = Path(os.environ.get("XDG_CONFIG_HOME") or user_directory() / ".config")
        places.insert(1, base / "turnout" / FILE_NAME)
    for path in places:
        with suppress(PermissionError):  # another user's directory, as after su: there is nothing for us in it
            if path.is_file():
                return path
            if path.is_symlink() or path.exists():
                what = "a symbolic link that leads nowhere" if not path.exists() else "no regular file"
                raise ConfigError(f"{path} is {what}", hint="move it away, or name another file: -c FILE")
    return None


def keys_in(path: Path, service: str) -> set[str]:
    """The keys that the file names for a service, dotted. Raises as :func:`load_file`, for what is no TOML."""
    tables: Mapping[str, object] = _tables(path).get("service", {}).get(service, {})
    return set(_flat(tables))


def file_schema() -> dict[str, Any]:
    """The JSON Schema of the file, with the meaning of each key."""
    made: dict[str, Any] = msgspec.json.schema(_RawFile)
    for key in KEYS.values():
        schema_of(made, key)["description"] = key.meaning
    return made


def schema_of(schema: dict[str, Any], key: Key) -> dict[str, Any]:
    """The part of :func:`file_schema` that describes one key."""
    found: dict[str, Any] = schema["$defs"][_TABLES[key.table or "service"].__name__]["properties"][key.last]
    return found


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as dotted keys; ``env`` is one value."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and key != "env":
            found |= _flat(cast("Mapping[str, object]", value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def load_file(path: Path) -> dict[str, ServiceRequest]:
    """Every service of a configuration file.

    Raises:
        ConfigError: it cannot be read, is no TOML (line and column are named), or holds an unknown key or a bad value.
    """
    tables = _tables(path)
    _check_removed(path, tables)
    try:
        raw: Any = msgspec.convert(tables, _RawFile)
    except msgspec.ValidationError as error:
        raise _explain(path, str(error), _refused_service(tables)) from error
    wanted: dict[str, ServiceRequest] = {}
    try:
        scrape = _scrape(raw.metrics, path)
    except UsageError as error:
        raise ConfigError(f"{path}: [metrics] {error.message}", hint=error.hint) from error
    for name, service in raw.service.items():
        try:
            wanted[name] = msgspec.structs.replace(_resolve(name, service, path), scrape=scrape)
        except ConfigError:
            raise
        except UsageError as error:
            raise ConfigError(f"{path}: [service.{name}] {error.message}", hint=error.hint) from error
    return wanted


def _tables(path: Path) -> dict[str, Any]:
    """The file as TOML reads it. Raises ConfigError as :func:`load_file`."""
    try:
        return tomllib.loads(Files().read(path, MAX_BYTES)[0].decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}", hint="correct that place; nothing was changed") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from error
    except (RecursionError, ValueError) as error:  # tables within tables, a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}", hint="correct that place; nothing was changed") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _refused_service(tables: Mapping[str, Any]) -> str:
    """The first service whose table is refused: msgspec does not say which it is. ``*`` where none is."""
    with suppress(msgspec.ValidationError):
        for name, table in msgspec.convert(tables.get("service"), dict[str, Any]).items():
            try:
                msgspec.convert(table, _SERVICE["service"])
            except msgspec.ValidationError:
                return name
    return "*"


def _check_removed(path: Path, tables: Mapping[str, Any]) -> None:
    """Raises ConfigError: a service has a key that an earlier version had."""
    services = tables.get("service")
    for name, service in cast("dict[str, object]", services).items() if isinstance(services, dict) else ():
        for key, (instead, hint) in REMOVED_KEYS.items():
            if isinstance(service, dict) and key in service:
                raise ConfigError(f"{path}: [service.{name}] {key} was removed in turnout 0.2: {instead}", hint=hint)


def _explain(path: Path, text: str, service: str) -> ConfigError:
    """Say it in the file's own words, and name the nearest key that exists."""
    where = (re.search(r"at `\$\.?([^`]*)`", text) or [None, ""])[1] or "the top level"
    where = where.replace("[...]", ".*")
    unknown = re.search(r"unknown field `([^`]+)`", text)
    shown = where.replace("service.*", f"service.{service}", 1)
    if not unknown:
        types = re.match(r"Expected `([^`]+)`, got `([^`]+)`", text)
        if types is None:
            return ConfigError(f"{path}: {shown}: {text.split(' - at ', maxsplit=1)[0]}", hint=ALL_KEYS)
        what = f"{path}: {shown} must be {_in_words(types[1])}, not {_in_words(types[2])}"
        return ConfigError(what, hint=_example(where))
    key = unknown[1]
    places = [_place(table, key) for table, struct in _TABLES.items() if key in struct.__struct_fields__]
    if places:
        hint = f"it belongs elsewhere: {' or '.join(places)}"
    elif near := difflib.get_close_matches(key, _keys_at(where), n=1):
        hint = f"did you mean {near[0]!r}?"
    elif where == "the top level":
        hint = f"a service is a table [service.NAME]; {ALL_KEYS}"
    else:
        hint = ALL_KEYS
    return ConfigError(f"{path}: {shown}: unknown key {key!r}", hint=hint)


_TYPES: Final = {
    "array": "an array",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "a string",
}


def _in_words(types: str) -> str:
    """The types that msgspec names, as TOML calls them."""
    named = types.split(" | ")
    return " or ".join(_TYPES.get(one, one) for one in named if one != "int" or "float" not in named)


def _example(where: str) -> str:
    """How a key is written, where its kind is often mistaken."""
    if where.endswith("command"):
        return f'for example {where.rpartition(".")[2]} = ["redis-server", "--port", "{{port}}"]'
    return f"a service is a table [service.NAME]; {ALL_KEYS}" if where in {"service", "service.*"} else ALL_KEYS


def _keys_at(where: str) -> Sequence[str]:
    """The keys of the table that msgspec names: ``service.*.health``, or the top level."""
    last = where.rpartition(".")[2]
    table = last if last in _TABLES else "service" if where.startswith("service.") else ""
    return _TABLES[table].__struct_fields__


def _place(table: str, key: str) -> str:
    """Where in the file a key stands, as it is written there."""
    if not table:
        return f"[{key}] at the top level"
    if table in {"service", "metrics"}:
        return f"{key} below [{'service.NAME' if table == 'service' else table}]"
    return f"{table} = {{ {key} = … }} below [service.NAME]"


def _scrape(raw: _RawMetrics | None, path: Path) -> Scrape:
    """A file that says nothing takes back what it said before, and nothing else."""
    if raw is None:
        return Scrape(source=str(path.absolute()))
    listen = parse_address(raw.listen, beyond_loopback=True)
    if not raw.expose and not ipaddress.ip_address(listen.host).is_loopback:
        raise UsageError(
            f"listen address {listen} lies beyond loopback", hint="expose = true, if others are to read the metrics"
        )
    return Scrape(listen=listen, source=str(path.absolute()))


def _resolve(name: str, raw: Any, path: Path) -> ServiceRequest:  # noqa: ANN401  # a struct that was made of the table
    """The service that ``raw`` defines, in the file at ``path``."""
    base = path.parent.absolute()
    values: dict[str, Any] = {}
    for key in KEYS.values():
        written = getattr(getattr(raw, key.table) if key.table else raw, key.last)
        values[key.field] = key.read(written, base)
        if key.named:
            values[key.named] = written is not None
    build = {key.field: values.pop(key.field) for key in BUILD}
    build["cwd"] = cwd = build["cwd"] or str(base)
    health = {field.partition(".")[2]: values.pop(field) for field in [*values] if field.startswith("health.")}
    settings = Settings(name=name, health=Health(**health, cwd=cwd), cwd=cwd, source=str(path.absolute()), **values)
    if build["version"] and settings.version_command:
        raise UsageError("version and version_command are both given", hint="keep one of them")
    check_env(build["env"], takes_listener=takes_listener(build["command"], build["env"], settings))
    settings, fitted = fit(with_part(settings, build["command"], build["env"]), build["command"])
    check(settings)
    return ServiceRequest(settings=settings, fitted=fitted, source=str(path), **build)
