"""Reference tables made of the code's own structs and classes, so that page and program cannot part."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import click
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from turnout import errors
from turnout.cli.schema import described
from turnout.config.file import file_schema, schema_of
from turnout.config.keys import KEYS, Takes
from turnout.core import deployment
from turnout.core.model import State

Row = Sequence[str]
TAKES: Mapping[Takes, str] = {
    Takes.BUILD: "`turnout up`, which starts another build",
    Takes.WITH_BUILD: "beside a changed build, the `turnout up` that starts it; else the running router",
}


class _Generated(SphinxDirective):
    """A directive that writes Markdown and has it read as if it stood in the page."""

    def markdown(self) -> Iterable[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        source = self.get_source_info()[0]
        holder = nodes.container()
        lines = StringList([line for text in self.markdown() for line in text.split("\n")], source)
        self.state.nested_parse(lines, self.content_offset, holder)
        return holder.children


class Settings(_Generated):
    """Every key of turnout.toml: type, default, meaning."""

    def markdown(self) -> Iterator[str]:
        schema = file_schema()
        rows = [
            (f"`{key.name}`", _type(schema_of(schema, key)), _default(key.default), _cell(key.meaning))
            for key in KEYS.values()
        ]
        yield from _table(("key", "type", "default", "meaning"), rows)


class Changes(_Generated):
    """What puts a changed key in force, beside those that the running router takes over at once."""

    def markdown(self) -> Iterator[str]:
        rows: list[Row] = []
        for takes in Takes:
            names = ", ".join(f"`{key.name}`" for key in KEYS.values() if key.takes is takes)
            rows.append((names, TAKES.get(takes) or f"`{'`, then `'.join(takes.split(', then '))}`"))
        yield from _table(("changed", "takes"), rows[1:])


class Schema(_Generated):
    """The structs of what a verb prints with --json: what each is, its fields and their types."""

    required_arguments: ClassVar[int] = 1

    def markdown(self) -> Iterator[str]:
        schema = described(self.arguments[0])
        first = schema["$ref"].rpartition("/")[2]
        structs = {name: one for name, one in schema["$defs"].items() if "properties" in one}
        for name in [first, *(name for name in structs if name != first)]:
            yield f"**{name}**. {_cell(structs[name].get('description', '')).replace('None', '`null`')}"
            yield ""
            rows = [
                (f"`{field}`", _type(shape, schema["$defs"])) for field, shape in structs[name]["properties"].items()
            ]
            yield from _table(("field", "type"), rows)


class ExitCodes(_Generated):
    """The exit codes, from the classes of turnout.errors."""

    def markdown(self) -> Iterator[str]:
        yield from _table(("code", "what happened", "`type` with `--json`"), _exit_codes())


class Transitions(_Generated):
    """The events of a deployment, and the states in which each may come."""

    def markdown(self) -> Iterator[str]:
        rows: list[Row] = []
        for event, states in deployment.TRANSITIONS.items():
            said = inspect.getdoc(getattr(deployment, event.value)) or ""
            allowed = ", ".join(f"`{state}`" for state in State if state in states)
            rows.append((f"`{event.value}`", allowed, _cell(said.partition("\n")[0])))
        yield from _table(("event", "in state", "what it does"), rows)


class Metrics(_Generated):
    """The table of metrics, where this build of turnout has them."""

    def markdown(self) -> Iterator[str]:
        try:
            found = importlib.import_module("turnout.status.metrics")
        except ModuleNotFoundError:
            yield "This version has none; `turnout status --json` has the same figures."
            return
        yield from found.markdown_table().split("\n")


def _exit_codes() -> Iterator[Row]:
    """Each code once, by its base class, with the first lines of what says so."""
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.TurnoutError)]
    yield "0", "Done, or it was so already.", ""
    for code in sorted({one.exit_code for one in classes}):
        for one in sorted((c for c in classes if c.exit_code == code), key=lambda c: (len(c.__mro__), c.__name__)):
            yield str(code), _cell((one.__doc__ or "").partition("\n")[0]), f"`{one.__name__}`"


def _table(head: Row, rows: Iterable[Row]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _default(value: object) -> str:
    if value in ("", [], {}, None):
        return ""
    return f"`{json.dumps(value)}`"


def _type(shape: Mapping[str, Any], structs: Mapping[str, Any] | None = None) -> str:
    """A JSON Schema's type in words: ``number or null``, ``list of DaemonStatus``."""
    if "$ref" in shape:
        name = shape["$ref"].rpartition("/")[2]
        one = (structs or {}).get(name, {})
        return ", ".join(f"`{json.dumps(value)}`" for value in one["enum"]) if "enum" in one else name
    if "anyOf" in shape and {one.get("type") for one in shape["anyOf"]} == {"string", "integer", "number"}:
        return "duration"
    if "anyOf" in shape:
        return " or ".join(dict.fromkeys(_type(one, structs) for one in shape["anyOf"]))
    if "enum" in shape:
        return ", ".join(f"`{json.dumps(value)}`" for value in shape["enum"])
    if "const" in shape:
        return f"`{json.dumps(shape['const'])}`"
    kind = shape.get("type", "anything")
    if kind == "array":
        return f"list of {_type(shape.get('items', {}), structs)}"
    if kind == "object" and isinstance(shape.get("additionalProperties"), Mapping):
        return f"object of {_type(shape['additionalProperties'], structs)}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _cell(text: str) -> str:
    """Text of docstrings and schemas as one cell: reStructuredText's double backquotes are Markdown's single ones."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def examples_as_typed(_app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Show the examples of a verb as they stand in its --help: columns and all."""
    epilog = inspect.cleandoc(context.command.epilog or "").replace("\b\n", "")
    lines[:] = [".. code-block:: text", "", *(f"   {line}" for line in epilog.splitlines()), ""] if epilog else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("turnout-settings", Settings)
    app.add_directive("turnout-changes", Changes)
    app.add_directive("turnout-schema", Schema)
    app.add_directive("turnout-exit-codes", ExitCodes)
    app.add_directive("turnout-transitions", Transitions)
    app.add_directive("turnout-metrics", Metrics)
    app.connect("sphinx-click-process-epilog", examples_as_typed)
    return {"parallel_read_safe": True}
