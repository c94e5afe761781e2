"""Options that verbs share, and how they become settings: flag over environment over file over default."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
import msgspec

from turnout.cli.error_output import hint_for
from turnout.config.file import find_file, load_file
from turnout.config.keys import ADDRESSES, KEYS, default
from turnout.config.settings import DEFAULT_LISTEN, DEFAULT_SERVICE, ServiceRequest, Settings, fit, with_part
from turnout.config.validation import check
from turnout.core.printable import clean
from turnout.errors import ConfigError, NoSuchServiceError, TurnoutError, UsageError
from turnout.state.definition import check_definition, defined_in, typed_here, working_directory
from turnout.state.home import Home
from turnout.state.service import Service, remembered

if TYPE_CHECKING:  # what changes something is loaded when something is to be changed: reading verbs are quick
    from turnout.lifecycle.verb_request import VerbRequest

F = TypeVar("F", bound=Callable[..., Any])
# Settings that stand above the file: the key, what its flag is followed by, the variable, the help
FLAGS: Final[Mapping[str, tuple[str, str | None, str]]] = {
    "listen": ("ADDR[,…]", "TURNOUT_LISTEN", f"Default {DEFAULT_LISTEN}."),
    "plane": ("P", None, "auto, relay, stream, reuseport or sk_lookup."),
    "strategy": ("S", None, "blue-green, or recreate for a daemon that owns its data."),
    "observe": ("D", None, "Observe window, e.g. 30s."),
}


class CommonOptions(msgspec.Struct, frozen=True):
    """The values of the options that verbs share; a verb that lacks one has its default."""

    config: str | None = None
    service: str | None = None
    listen: str | None = None
    plane: str | None = None
    strategy: str | None = None
    observe: str | None = None
    lock_timeout: str | None = None
    if_generation: int | None = None
    take_over: bool = False
    dry_run: bool = False
    recorded: bool = False
    verbose: bool = False
    quiet: bool = False

    def request(self, verb: str, **options: Any) -> VerbRequest:
        """The verb, with these options of its own."""
        from turnout.lifecycle.verb_request import VerbRequest  # noqa: PLC0415  # see above

        return VerbRequest(
            verb, if_generation=self.if_generation, take_over=self.take_over, recorded=self.recorded, **options
        )


def reading(function: F) -> F:
    """Options of every verb: which service. The verb gets the common options that it has as ``common``."""

    @functools.wraps(function)
    def run(**options: Any) -> Any:
        common = CommonOptions(
            **{name: options.pop(name) for name in CommonOptions.__struct_fields__ if name in options}
        )
        try:
            return function(common=common, **options)
        except TurnoutError as error:
            if error.hint:
                error.hint = hint_for(error.hint, service=_typed("service"), config=_typed("config"))
            raise

    return _add(
        cast("F", run),
        click.option("-c", "--config", envvar="TURNOUT_CONFIG", metavar="FILE", help="Configuration file."),
        click.option(
            "--service", envvar="TURNOUT_SERVICE", metavar="NAME", help="Which service.", shell_complete=_names
        ),
    )


def _typed(option: str) -> str | None:
    """The value of an option that stands on the command line; one of the environment holds for the next command."""
    context = click.get_current_context()
    if context.get_parameter_source(option) is not click.core.ParameterSource.COMMANDLINE:
        return None
    value: str = context.params[option]
    return value


def changing(function: F) -> F:
    """Options of verbs that change something."""
    return _add(
        reading(function),
        click.option(
            "--lock-timeout",
            envvar="TURNOUT_LOCK_TIMEOUT",
            metavar="S",
            help="Seconds to wait for another verb (default 8, at least 0.1).",
        ),
        click.option(
            "--if-generation",
            type=click.IntRange(0),
            metavar="N",
            help="Only if the deployment stands at generation N.",
        ),
        click.option("--take-over", is_flag=True, help="Take over a service that another file or directory defines."),
        click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing."),
        click.option("-v", "--verbose", is_flag=True, help="Every step on stderr."),
        click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
    )


def settings_options(function: F) -> F:
    """Options that stand above the file, of verbs that set a service up or change its settings."""
    for name, (metavar, variable, text) in FLAGS.items():
        function = click.option(f"--{name}", envvar=variable, metavar=metavar, help=text)(function)
    return function


# of verbs that start a daemon from this shell
recorded_option = click.option(
    "--recorded",
    is_flag=True,
    help="Use environment, limits and umask of the last deploy, not those of this shell: for cron and hooks.",
)


def _add(function: F, *options: Callable[[F], F]) -> F:
    return functools.reduce(lambda decorated, option: option(decorated), options, function)


def resolve(
    common: CommonOptions,
    command: Sequence[str] = (),
    *,
    version: str = "",
    creates: bool = False,
    remembered_only: bool = False,
    automatic: bool = False,
    recorded: bool = False,
) -> ServiceRequest:
    """The service that is meant, with the build that is asked for.

    Args:
        common: the common options.
        command: as given on the command line.
        version: of that command.
        creates: the verb may set up a service that has never been up.
        remembered_only: take the settings that are in force, and look for no file.
        automatic: a client asks with its own command, or the router.
        recorded: version_command gets the environment of the last deploy.

    Raises:
        NoSuchServiceError: no file defines it, it has never been up, and the verb cannot set it up.
        UsageError: the file has several and none was named; an option is off; with ``creates``, another file defines
            the service.
    """
    home = Home.find()
    path = None if remembered_only else find_file(common.config)
    services = load_file(path) if path else {}
    name = common.service or _only(services)
    known = services.get(name)
    definition = defined_in(path) if path and known else typed_here() if command else None
    if known is None:
        settings = remembered(home.service(name))
        if settings is None:
            if not (creates and command):
                raise unknown_service(name, sorted({*services, *home.service_names()}))
            settings = Settings(name=name, listen=default("listen"))
        known = ServiceRequest(settings=settings)
    settings = apply_flags(known.settings, common)
    fitted = known.fitted if creates and not common.strategy else ""
    if command:
        if not working_directory():
            raise UsageError(
                "the working directory was deleted, and the command would run in it",
                hint="cd to a directory that exists",
            )
        # what somebody types is in no file: from here on there is none to watch
        settings = msgspec.structs.replace(settings, source="", watch=(), version_command=())
        settings, fitted = fit(with_part(settings, command, {}), command)
        known = ServiceRequest(settings=settings, command=tuple(command), version=version)
    check(settings)
    wanted = msgspec.structs.replace(
        known, settings=settings, version=version or known.version, fitted=fitted, definition=definition
    )
    if not creates:
        return wanted
    from turnout.config.build_stamp import stamped  # noqa: PLC0415  # see above

    if not common.take_over:  # once more under the lock; here, before anything is run that the other file names
        context = click.get_current_context(silent=True)
        verb = context.info_name if context else None
        check_definition(home.service(name), definition, verb or "up", automatic=automatic)
    environ = Service.open(home.service(name), settings).environ_of() if recorded or common.recorded else None
    return stamped(wanted, environ, run=not common.dry_run)


def shown(common: CommonOptions) -> Settings:
    """The settings of the service that a verb shows: those in force, whatever a file in this directory says of it.

    Raises:
        NoSuchServiceError: it has never been up, and no file defines it.
        UsageError: the file has several and none was named.
    """
    home = Home.find()
    path = find_file(common.config)
    if common.service and not common.config and (settings := remembered(home.service(common.service))):
        return settings
    services = load_file(path) if path else {}
    name = common.service or _only(services)
    try:
        settings = remembered(home.service(name))
    except ConfigError:  # another version wrote them
        if name not in services:
            raise
        settings = None
    if settings is None and name not in services:
        raise unknown_service(name, sorted({*services, *home.service_names()}))
    return settings or services[name].settings


def shown_service(common: CommonOptions) -> Service:
    """The service that a verb shows, opened. Raises as :func:`shown`."""
    settings = shown(common)
    return Service.open(Home.find().service(settings.name), settings)


def carry_out(
    common: CommonOptions,
    wanted: ServiceRequest,
    request: VerbRequest,
    *,
    waits: bool = True,
    timeout_s: float | None = None,
) -> None:
    """Carry out a verb, or print what it would do; progress goes to stderr, and the result to stdout.

    ``waits``: stay until an observe window is over; ``timeout_s``: seconds to wait for that; None: the window and a
    while.
    """
    home = Home.find()
    if common.dry_run:
        from turnout.lifecycle.dry_run import DryRun  # noqa: PLC0415  # see above

        for line in DryRun(home, wanted, request).lines():
            click.echo(f"would {clean(line)}")
        return
    from turnout.cli.progress import Reporter  # noqa: PLC0415
    from turnout.control.keeper_client import tell_service_manager  # noqa: PLC0415
    from turnout.lifecycle.observation import await_verdict  # noqa: PLC0415
    from turnout.lifecycle.progress import Progress  # noqa: PLC0415
    from turnout.lifecycle.verbs import Lifecycle  # noqa: PLC0415
    from turnout.state.lifecycle_lock import lock_timeout  # noqa: PLC0415

    lock_timeout_s, warning = lock_timeout(common.lock_timeout)
    reporter = Reporter(quiet=common.quiet, verbose=common.verbose)
    if warning:
        reporter.warn(warning)
    if wanted.fitted:
        reporter.say(wanted.fitted)
    with Lifecycle(
        home,
        wanted,
        request,
        lock_timeout_s=lock_timeout_s,
        progress=Progress(reporter.step, reporter.waiting, reporter.warn, reporter.say, reporter.warn),
    ) as lifecycle:
        result = lifecycle.run()
        lifecycle.unlock()
        if request.verb == "up":
            tell_service_manager(home)
        if result.switched and result.switched.observed and waits:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, result.switched, timeout_s=timeout_s)
    click.echo(clean(result.text))


def _names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The services that a shell offers behind ``--service``."""
    try:
        return [name for name in Home.find().service_names() if name.startswith(incomplete)]
    except TurnoutError:
        return []


def watched_file(common: CommonOptions) -> CommonOptions:
    """The same, with the configuration file that the service was brought up from: what the router goes by."""
    settings = remembered(Home.find().service(common.service or DEFAULT_SERVICE))
    return msgspec.structs.replace(common, config=settings.source or None, take_over=True) if settings else common


def _only(services: dict[str, ServiceRequest]) -> str:
    if len(services) > 1 and DEFAULT_SERVICE not in services:
        raise UsageError(f"which service? the file has {', '.join(sorted(services))}", hint="name it with --service")
    return next(iter(services)) if len(services) == 1 else DEFAULT_SERVICE


def unknown_service(name: str, known: list[str]) -> NoSuchServiceError:
    """The error of a service that no file defines and that has never been up; ``known``: those that there are."""
    home = Home.find()
    if name in home.services_without_settings():
        from turnout.control.removed_settings import removed_settings, restoring_command  # noqa: PLC0415  # seldom needed

        return NoSuchServiceError(removed_settings(home.service(name)), hint=restoring_command(home, name))
    have = f"; there are {', '.join(known)}" if known else ""
    return NoSuchServiceError(
        f"no service {name!r}{have}", hint="turnout up -- COMMAND --port {port}, or write a turnout.toml"
    )


def apply_flags(settings: Settings, common: CommonOptions) -> Settings:
    """The settings with those in place that an option set. Raises UsageError: an option has no such value."""
    changes: dict[str, Any] = {}
    for name in FLAGS:
        if text := getattr(common, name):
            key = KEYS[name]
            written = [address.strip() for address in text.split(",")] if key.kind is ADDRESSES else text
            changes[key.field] = key.read(written, what=f"--{name}")
            if key.named:
                changes[key.named] = True
    return msgspec.structs.replace(settings, **changes)
