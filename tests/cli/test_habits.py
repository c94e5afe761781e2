"""What people expect of a command line: quick help, examples, near misses, completion, errors as JSON, colour."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from turnout.cli import cli
from turnout.cli.commands import VERBS
from turnout.cli.error_output import wants_json
from turnout.cli.error_report import ErrorOutput
from turnout.cli.formatting import moment, size, span
from turnout.cli.options import changing
from turnout.cli.schema import SCHEMAS, described
from turnout.cli.streams import in_colour
from turnout.core.printable import clean

HEAVY = {"uvloop", "rich", "starlette", "uvicorn", "prometheus_client", "psutil", "asyncio", "msgspec"}


def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "turnout", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=more or None)


def every_command() -> dict[str, click.Command]:
    """Each verb, and each verb of a group of verbs, by what one types."""
    found: dict[str, click.Command] = {}
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": one for inner, one in command.commands.items()}
    return found


COMMANDS = every_command()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from turnout.cli import main; sys.argv = ['turnout', '--help']\n"
        "try: main()\n"
        "finally: print('|'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage: turnout" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split("|"))
    assert "click" in loaded, "the list of modules was not printed"
    assert not loaded & HEAVY


@pytest.mark.parametrize("module", ["status", "history", "wait", "logs", "config"])
def test_a_verb_that_reads_loads_nothing_that_changes_serves_or_draws(module: str) -> None:
    """It is typed at 3 a.m., and by monitors every few seconds."""
    needless = {
        *HEAVY - {"msgspec"},
        "filelock",
        "turnout.lifecycle.verbs",
        "turnout.lifecycle.rollout",
        "turnout.lifecycle.dry_run",
    }
    code = f"import sys, turnout.cli.{module}; print(sorted({needless} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["doctor", "up", "deploy"])
def test_a_verb_needs_neither_the_routers_loop_nor_what_draws_or_serves_metrics(module: str) -> None:
    needless = {"uvloop", "rich", "starlette", "prometheus_client"}
    code = f"import sys, turnout.cli.{module}; print(sorted({needless} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_verb_has_help_with_examples(name: str) -> None:
    done = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert done.exit_code == 0
    assert "Example" in done.output
    assert f"turnout {name.split(maxsplit=1)[0]}" in done.output.partition("Example")[2]
    assert COMMANDS[name].help, "it says what it does"
    assert all(option.help for option in COMMANDS[name].params if isinstance(option, click.Option))


@pytest.mark.parametrize(
    "name",
    ["up", "down", "start", "stop", "refresh", "deploy", "rollback", "attach", "detach", "pause", "resume", "drain"],
)
def test_every_verb_that_changes_can_be_tried_and_fenced(name: str) -> None:
    flags = {flag for option in COMMANDS[name].params for flag in option.opts}
    assert flags >= {"--dry-run", "--if-generation", "--quiet", "--verbose", "--lock-timeout"}


def test_the_list_of_verbs_names_each_in_one_line() -> None:
    said = CliRunner().invoke(cli, ["--help"], terminal_width=100).output
    for name, (_, text) in VERBS.items():
        assert f"\n  {name} " in said
        assert text.rstrip(".").split()[0] in said


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (["statsu"], "did you mean status?"),
        (["deplyo", "--", "x"], "did you mean deploy?"),
        (["status", "--jsno"], "did you mean --json?"),
        (["deploy", "--dryrun"], "did you mean --dry-run?"),
        (["registry", "shwo"], "show"),
        (["xyzzy"], "turnout --help"),
    ],
)
def test_an_unknown_verb_or_option_names_the_nearest(typed: list[str], near: str) -> None:
    done = run(*typed)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("turnout: ")
    assert lines[1].startswith("hint: ")
    assert near in done.stderr


def test_an_error_is_json_on_stdout_where_json_was_asked_for() -> None:
    for typed in (
        ["status", "--json", "--service", "no such"],
        ["history", "--json", "--service", "nobody"],
        ["status", "--json", "--bogus"],
    ):
        done = run(*typed)
        assert (done.returncode != 0, done.stderr) == (True, "")
        report = msgspec.json.decode(done.stdout, type=ErrorOutput, strict=True).error
        assert report.exit_code == done.returncode
        assert report.type.endswith("Error")
        assert report.message
        assert report.hint


def test_json_in_the_daemons_own_command_asks_for_nothing() -> None:
    assert wants_json(["status", "--json"])
    assert not wants_json(["up", "--", "server", "--json"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_turnout(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_TURNOUT_COMPLETE" in done.stdout


def test_completion_knows_verbs_options_and_services(tmp_path: Path) -> None:
    (tmp_path / "services/cache").mkdir(parents=True)
    (tmp_path / "services/cache/settings.json").write_text("{}")

    def complete(words: str, at: int) -> set[str]:
        answer = run(
            _TURNOUT_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(at),
            TURNOUT_HOME=str(tmp_path),
            HOME=str(tmp_path),
        )
        return {line.partition(",")[2] for line in answer.stdout.splitlines()}

    assert complete("turnout dep", 1) == {"deploy"}
    assert "--dry-run" in complete("turnout deploy --d", 2)
    assert complete("turnout stop --service c", 3) == {"cache"}


def test_bash_takes_the_script(tmp_path: Path) -> None:
    script = tmp_path / "turnout.bash"
    script.write_text(run("completion", "bash").stdout)
    done = subprocess.run(
        ["bash", "-c", f'source "{script}" && complete -p turnout'],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "_turnout_completion" in done.stdout


@pytest.mark.parametrize("what", sorted(SCHEMAS))
def test_a_schema_is_printed_and_made_from_the_structs(what: str) -> None:
    printed = json.loads(CliRunner().invoke(cli, ["schema", what]).output)
    assert printed == json.loads(json.dumps(described(what)))
    assert printed["$schema"].startswith("https://json-schema.org/")
    name = printed["$ref"].rpartition("/")[2]
    assert printed["$defs"][name]["properties"]


def test_status_as_json_of_an_empty_home_fits_its_schema(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["status", "--json"], env={"TURNOUT_HOME": str(tmp_path / "none")})
    assert json.loads(done.output) == {"schema": 1, "metrics": None, "services": []}
    required = described("status")["$defs"]["Status"]["required"]
    assert required == ["schema", "metrics", "services"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wanted", "stream", "environ", "expected"),
    [
        ("auto", Terminal(), {}, True),
        ("auto", io.StringIO(), {}, False),
        ("auto", Terminal(), {"NO_COLOR": "1"}, False),
        ("auto", Terminal(), {"NO_COLOR": ""}, True),
        ("auto", io.StringIO(), {"FORCE_COLOR": "1"}, True),
        ("auto", io.StringIO(), {"FORCE_COLOR": "0"}, False),
        ("auto", Terminal(), {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ("auto", Terminal(), {"TERM": "dumb"}, False),
        ("always", io.StringIO(), {"NO_COLOR": "1"}, True),
        ("never", Terminal(), {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour_is_for_terminals_and_for_those_who_ask(
    wanted: str, stream: io.StringIO, environ: dict[str, str], expected: bool
) -> None:
    assert in_colour(wanted, stream, environ) is expected


def test_doctor_prints_colour_when_told_and_none_into_a_pipe(tmp_path: Path) -> None:
    environ = {"TURNOUT_HOME": str(tmp_path / "none"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    assert "\x1b[" not in run("doctor", "-v", **environ).stdout
    assert "\x1b[" in run("doctor", "-v", "--color", "always", **environ).stdout
    assert "\x1b[" in run("doctor", "-v", **environ, FORCE_COLOR="1").stdout
    assert "\x1b[" not in run("doctor", "-v", "--color", "never", **environ, FORCE_COLOR="1").stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("v1.2-rc", "v1.2-rc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\x9b31m", "\\x9b31m"),
        ("safe\u202eevil", "safe\\u202eevil"),
        ("größe", "größe"),
        ("\udce4", "\\udce4"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_a_daemon_chose_reaches_the_terminal_spelled_out(text: str, shown: str) -> None:
    assert clean(text) == shown
    assert clean(text).isprintable()


def test_figures_are_as_people_read_them() -> None:
    assert [span(s) for s in (0.4, 59, 61, 3600, 90061)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]
    assert [size(n) for n in (0, 999, 1000, 2_500_000, 4e12)] == ["0 B", "999 B", "1.0 kB", "2.5 MB", "4.0 TB"]
    assert moment(1e300) == "@1e+300", "whatever stands in the file"


def test_the_common_options_are_the_same_everywhere() -> None:
    @click.command()
    @changing
    def verb(**_: object) -> None: ...

    names = {option.name for option in verb.params}
    for name in ("refresh", "stop", "down", "pause"):
        assert names <= {option.name for option in COMMANDS[name].params}
