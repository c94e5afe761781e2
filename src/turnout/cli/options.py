"""Options that verbs share, and how they become settings: flag over environment over file over default."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from turnout.config import (
    DEFAULT_LISTEN,
    DEFAULT_SERVICE,
    Address,
    Settings,
    Wanted,
    duration,
    fit,
    parse_address,
    plane_name,
    strategy_name,
    with_part,
)
from turnout.config_check import check
from turnout.config_file import find_file, load_file
from turnout.core.printable import clean
from turnout.errors import NoSuchServiceError, TurnoutError, UsageError
from turnout.service import Service, remembered
from turnout.system.home import Home

if TYPE_CHECKING:  # what changes something is loaded when something is to be changed: reading verbs are quick
    from turnout.cli.report import Reporter
    from turnout.foresight import Intent
    from turnout.lifecycle import Lifecycle

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Choice:
    """What the common options said."""

    config: str | None = None
    service: str | None = None
    listen: str | None = None
    plane: str | None = None
    strategy: str | None = None
    observe: str | None = None
    lock_timeout: str | None = None
    if_generation: int | None = None
    dry_run: bool = False
    verbose: bool = False
    quiet: bool = False

    @property
    def reporter(self) -> Reporter:
        """Who tells on stderr how far the verb is."""
        from turnout.cli.report import Reporter  # noqa: PLC0415  # see above

        return Reporter(quiet=self.quiet, verbose=self.verbose)


def reading(function: F) -> F:
    """Options of every verb: which service."""
    function = click.option("-c", "--config", envvar="TURNOUT_CONFIG", metavar="FILE", help="Configuration file.")(
        function
    )
    return click.option(
        "--service", envvar="TURNOUT_SERVICE", metavar="NAME", help="Which service.", shell_complete=_names
    )(function)


def changing(function: F) -> F:
    """Options of verbs that change something."""
    function = reading(function)
    function = click.option(
        "--lock-timeout",
        envvar="TURNOUT_LOCK_TIMEOUT",
        metavar="S",
        help="Seconds to wait for another verb (default 8, at least 0.1).",
    )(function)
    function = click.option(
        "--if-generation", type=click.IntRange(0), metavar="N", help="Only if the deployment stands at generation N."
    )(function)
    function = click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")(function)
    function = click.option("-v", "--verbose", is_flag=True, help="Every step on stderr.")(function)
    return click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")(function)


def shaping(function: F) -> F:
    """Options of verbs that set a service up, or change its settings."""
    return shape(changing(function))


def shape(function: F) -> F:
    """Options that stand above the file."""
    function = click.option("--listen", envvar="TURNOUT_LISTEN", metavar="ADDR[,…]", help=f"Default {DEFAULT_LISTEN}.")(
        function
    )
    function = click.option("--plane", metavar="P", help="auto, relay, stream, reuseport or sk_lookup.")(function)
    function = click.option("--strategy", metavar="S", help="blue-green, or recreate for a daemon that owns its data.")(
        function
    )
    return click.option("--observe", metavar="D", help="Observe window, e.g. 30s.")(function)


def choice(options: dict[str, Any]) -> Choice:
    """Take the common options out of what click gave, leaving the verb's own."""
    return Choice(**{field: options.pop(field) for field in Choice.__slots__ if field in options})


def resolve(
    chosen: Choice,
    command: Sequence[str] = (),
    *,
    version: str = "",
    creates: bool = False,
    remembered_only: bool = False,
) -> Wanted:
    """The service that is meant, with the build that is asked for.

    Args:
        chosen: the common options.
        command: a command given on the command line.
        version: its version.
        creates: the verb may set up a service that nobody knows.
        remembered_only: take the settings that are in force, and look for no file.

    Raises:
        NoSuchServiceError: nobody knows it, and the verb cannot make it up.
        UsageError: the file has several and none was named; an option is off.
    """
    home = Home.find()
    path = None if remembered_only else find_file(chosen.config)
    services = load_file(path) if path else {}
    name = chosen.service or _only(services)
    known = services.get(name)
    if known is None:
        settings = remembered(home.service(name))
        if settings is None:
            if not (creates and command):
                raise _unknown(name, sorted({*services, *home.service_names()}))
            settings = Settings(name=name, listen=(parse_address(DEFAULT_LISTEN),))
        known = Wanted(settings=settings)
    settings = _shaped(known.settings, chosen)
    fitted = known.fitted if creates and not chosen.strategy else ""
    if command:
        # what somebody types is in no file: from here on there is none to watch
        settings = msgspec.structs.replace(settings, source="", watch=(), version_command=())
        settings, fitted = fit(with_part(settings, command, {}), command)
        known = Wanted(settings=settings, command=tuple(command), version=version)
    check(settings)
    wanted = msgspec.structs.replace(known, settings=settings, version=version or known.version, fitted=fitted)
    if not creates:
        return wanted
    from turnout.build_stamp import stamped  # noqa: PLC0415  # see above

    return stamped(wanted)


@contextmanager
def open_lifecycle(
    chosen: Choice,
    wanted: Wanted,
    verb: str,
    reporter: Reporter,
    *,
    automatic: bool = False,
    from_router: bool = False,
) -> Generator[Lifecycle]:
    """The service under its lock, with progress going to ``reporter``.

    Raises:
        ConflictError: the deployment does not stand at the generation that was asked for; nothing was changed.
    """
    from turnout.foresight import must_stand_at  # noqa: PLC0415  # see above
    from turnout.lifecycle import Lifecycle  # noqa: PLC0415
    from turnout.system.lifecycle_lock import lock_timeout  # noqa: PLC0415

    timeout_s, warning = lock_timeout(chosen.lock_timeout)
    if warning:
        reporter.warn(warning)
    if wanted.fitted:
        reporter.say(wanted.fitted)
    with Lifecycle(
        Home.find(),
        wanted,
        verb,
        lock_timeout_s=timeout_s,
        automatic=automatic,
        from_router=from_router,
        on_step=reporter.step,
        on_wait=reporter.waiting,
        on_slow=reporter.warn,
    ) as lifecycle:
        # a generation begins under this very lock, so what holds here holds until the verb's own begin
        if chosen.if_generation is not None:
            must_stand_at(lifecycle.service.registry.read().snapshot, chosen.if_generation)
        yield lifecycle


def foretold(chosen: Choice, wanted: Wanted, intent: Intent) -> bool:
    """Whether the verb is only to be told: then it has been, on stdout."""
    if not chosen.dry_run:
        return False
    from turnout.foresight import foretell  # noqa: PLC0415  # see above

    home = Home.find()
    service = Service.open(home.service(wanted.settings.name), wanted.settings)
    for line in foretell(home, service, wanted, replace(intent, expected_generation=chosen.if_generation)):
        click.echo(f"would {clean(line)}")
    return True


def _names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The services that a shell offers behind ``--service``."""
    try:
        return [name for name in Home.find().service_names() if name.startswith(incomplete)]
    except TurnoutError:
        return []


def watched_file(chosen: Choice) -> Choice:
    """The same, with the configuration file that the service was brought up from: what the router goes by."""
    settings = remembered(Home.find().service(chosen.service or DEFAULT_SERVICE))
    return replace(chosen, config=settings.source or None) if settings else chosen


def listening(text: str) -> tuple[Address, ...]:
    """One address, or several with commas in between. Raises UsageError: one of them is none."""
    return tuple(parse_address(one.strip(), beyond_loopback=True) for one in text.split(","))


def _only(services: dict[str, Wanted]) -> str:
    if len(services) > 1 and DEFAULT_SERVICE not in services:
        raise UsageError(f"which service? the file has {', '.join(sorted(services))}", hint="name it with --service")
    return next(iter(services)) if len(services) == 1 else DEFAULT_SERVICE


def _unknown(name: str, known: list[str]) -> NoSuchServiceError:
    have = f"; there are {', '.join(known)}" if known else ""
    return NoSuchServiceError(
        f"no service {name!r}{have}", hint="turnout up -- COMMAND --port {port}, or write a turnout.toml"
    )


def _shaped(settings: Settings, chosen: Choice) -> Settings:
    changes: dict[str, Any] = {}
    if chosen.listen:
        changes["listen"] = listening(chosen.listen)
    if chosen.plane:
        changes["plane"] = plane_name(chosen.plane)
    if chosen.strategy:
        changes["strategy"] = strategy_name(chosen.strategy)
        changes["strategy_named"] = True
    if chosen.observe:
        changes["observe_s"] = duration(chosen.observe, what="--observe")
    return msgspec.structs.replace(settings, **changes)
