"""The code blocks of a Markdown page, as its author meant them, in the stories that they tell.

A page is one story: its blocks run in order, in one home and one directory. Comments steer, which no reader sees:

    <!-- story: NAME -->         a new story begins, in a home and a directory of its own
    <!-- not run: REASON -->     the next block cannot run in a test
    <!-- file: NAME -->          the next block is written to that file
    <!-- run before:             commands that the page takes for granted
    COMMANDS -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).parents[2]
RUN: Final = frozenset({"console", "sh", "pycon", "python"})
READ: Final = frozenset({"toml", "json", "text", "nginx", "dockerfile", "ini", "yaml"})
_COMMENT: Final = re.compile(r"<!--\s*(story|not run|file|run before):\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One block. ``not_run``: why not, or empty; ``file``: where its text is to be written, or empty."""

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first_command(self) -> str:
        """What it begins with, up to a comment, a further command or a ``-c``, to tell it by."""
        return re.split(r" && |  +# | -c ", self.text.partition("\n")[0].removeprefix("$ "))[0]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a console block with what it must print; None: the page does not say."""

    text: str
    expected: str | None
    interrupted: bool = False  # the reader types Ctrl-C once something was printed


@dataclass(frozen=True, slots=True)
class Story:
    """Blocks that run one after the other."""

    name: str
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return self.name

    def mentions(self, *words: str) -> bool:
        """Whether a block that is run, or written to a file, has one of these words."""
        return any(
            re.search(rf"\b{word}\b", block.text) for block in self.blocks for word in words if not block.not_run
        )


def pages() -> list[Path]:
    """Everything with commands that a reader may type."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def stories(page: Path) -> list[Story]:
    """The stories of a page, those without anything to run or to write left out."""
    name = page.relative_to(ROOT).as_posix()
    told: dict[str, list[Block]] = {name: []}
    current, marks = name, dict[str, str]()
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            for kind, value in _COMMENT.findall(token.content):
                line = (token.map or [0])[0] + 1
                if kind == "story":
                    current = f"{name}:{value}"
                    assert current not in told, f"{name}:{line}: there are two stories {value!r}"
                    told[current] = []
                elif kind == "run before":
                    told[current].append(Block(name, line, "sh", value))
                else:
                    marks[kind] = value
        elif token.type in {"fence", "code_block"}:
            language = token.info.strip() if token.type == "fence" else ""
            if language.startswith("{"):
                continue  # a directive of Sphinx, which knows whether it is right
            line = (token.map or [0])[0] + 1
            block = Block(name, line, language, token.content, marks.get("not run", ""), marks.get("file", ""))
            told[current].append(block)
            marks = {}
        elif token.type in {"heading_open", "paragraph_open"}:
            assert not marks, f"{name}:{(token.map or [0])[0]}: a comment {marks} without a block right behind it"
    return [Story(title, tuple(blocks)) for title, blocks in told.items() if blocks]


def commands(block: Block) -> list[Command]:
    """What to type: each ``$ …`` line of a console block with what follows it; a ``sh`` block is one command."""
    if block.language == "sh":
        return [Command(block.text, None)]
    found: list[Command] = []
    lines = block.text.splitlines()
    assert lines[0].startswith("$ "), f"{block} begins with no command"
    while lines:
        text = lines.pop(0).removeprefix("$ ")
        while text.endswith("\\"):
            text += "\n" + lines.pop(0)
        output: list[str] = []
        while lines and not lines[0].startswith("$ "):
            output.append(lines.pop(0))
        interrupted = bool(output) and output[-1] == "^C"
        output = output[:-1] if interrupted else output
        found.append(Command(text, "\n".join(output) if output else None, interrupted))
    return found
