"""The verbs by name: a verb's file is imported when that verb is asked for, so that ``turnout --help`` is quick."""

from __future__ import annotations

import importlib
from typing import Any

import click

from turnout.errors import UsageError

# section: verb: (file and name in it, what the list of verbs says of it)
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "up": ("up:up", "Have the service running: keeper, router, and a daemon of the configured build."),
        "down": ("down:down", "Drain and stop the service: daemon, listener and, with the last service, the rest."),
        "start": ("start:start", "Start the daemon of the build that was active last; never deploys another."),
        "stop": ("stop:stop", "Stop the daemon; the fixed address stays."),
        "refresh": ("refresh:refresh", "Start the running build again and switch to the new process."),
    },
    "Roll out": {
        "deploy": ("deploy:deploy", "Start a new candidate, switch to it once it is healthy, and watch it."),
        "rollback": (
            "rollback:rollback",
            "Go back: in the window at once, else by a new rollout of the earlier build.",
        ),
        "attach": ("attach:attach", "Switch to a daemon that something else started."),
        "detach": ("attach:detach", "Let an attached daemon go; it runs on."),
        "pause": ("pause:pause", "Hold new connections until resume; those that exist go on."),
        "resume": ("pause:resume", "Let held connections go, and serve new ones again."),
        "drain": ("drain:drain", "Hasten draining, or explain it."),
    },
    "Look": {
        "status": ("status:status", "Who serves, how it is, and what to type if it is not well."),
        "wait": ("wait:wait", "Wait until a service is healthy, idle, or at a generation."),
        "logs": ("logs:logs", "Print the active daemon's log."),
        "history": ("history:history", "Tell what was decided, when, and on what evidence."),
        "why": ("history:why", "Tell the story of one rollout."),
        "dashboard": ("dashboard:dashboard", "Show all of it on a page in a browser, and steer from there."),
        "doctor": ("doctor:doctor", "Find what is wrong with this machine or this service, and how to mend it."),
    },
    "Set up": {
        "init": ("init:init", "Write a commented turnout.toml."),
        "config": ("config:config", "Print the settings in force, and where each comes from."),
        "schema": ("schema:schema", "Print the JSON Schema of what --json prints."),
        "completion": ("completion:completion", "Print the completion script of a shell."),
        "registry": ("registry:registry", "Show, check or mend the registry."),
        "router": ("router:router", "Run keeper and router in the foreground, or have the router replaced."),
        "service": ("service:service", "Have systemd run it: write its unit, or remove it."),
        "demo": ("demo:demo", "See all of it in 15 seconds."),
        "bench": ("bench:bench", "Measure what the fixed address costs, and what a switch does."),
    },
}
VERBS = {name: verb for section in SECTIONS.values() for name, verb in section.items()}


class LazyGroup(click.Group):
    """The group of all verbs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # as above
        found = VERBS.get(cmd_name)
        if found is None:
            return None
        module, _, name = found[0].partition(":")
        command: Any = getattr(importlib.import_module(f"turnout.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib  # noqa: PLC0415  # for this error alone

            near = difflib.get_close_matches(name, VERBS, n=1)
            hint = f"did you mean {near[0]}? See also: turnout --help" if near else "turnout --help"
            raise UsageError(f"there is no verb {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # as above
        width = max(map(len, VERBS))
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(f"{name:{width}}", text) for name, (_, text) in verbs.items()])
