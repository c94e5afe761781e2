"""What the README and the documentation tell a reader to type does what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from doc_blocks import READ, ROOT, RUN, Block, Story, commands, pages, stories
from doc_story import fits, stage
from support import report
from turnout.config.file import load_file
from turnout.config.keys import KEYS

STORIES = [story for page in pages() for story in stories(page)]
BLOCKS = [block for story in STORIES for block in story.blocks]
RUN_HERE = [story for story in STORIES if any(block.language in RUN and not block.not_run for block in story.blocks)]

# Each block that no test runs, by its page and first command, and why. A new one is entered here, so that it is seen.
NOT_RUN = {
    ("README.md", "pip install ."): "an index of packages; continuous integration runs it on a clean machine",
    ("README.md", "systemctl disable --now redis"): "systemd",
    ("README.md", "tox -e bench"): "20 minutes, and tox runs the tests",
    ("README.md", "turnout bench --against 127.0.0.1:6379 --send 'PING\\r\\n'"): (
        "it takes its time, and docs/explanation/planes.md has it, too"
    ),
    ("README.md", "pip install 'turnout[metrics]'"): "an index of packages",
    ("README.md", "pip install 'turnout[web]'"): "it serves until Ctrl-C; the tests have it in a browser",
    ("README.md", "pip install -U turnout"): "an index of packages",
    ("README.md", "turnout service install --dry-run"): "systemd",
    ("CONTRIBUTING.md", "pip install tox"): "tox runs the tests",
    (
        "docs/guides/containers.md",
        "docker run -d --name cache -p 127.0.0.1:6379:6379 cache-image",
    ): "a container engine",
    (
        "docs/guides/containers.md",
        "docker run -d --name cache-1 -p 127.0.0.1:6380:6379 redis:7.0",
    ): "a container engine",
    ("docs/guides/dashboard.md", "pip install 'turnout[web]'"): "an index of packages",
    (
        "docs/guides/dashboard.md",
        "ssh -L 8474:127.0.0.1:8474 HOST turnout dashboard --port 8474 --no-open",
    ): "a second machine",
    ("docs/guides/own-port.md", "turnout up --activation on -- etcd"): "no daemon of the tests has two ports",
    ("docs/guides/existing-port.md", "sudo systemctl disable --now redis-server"): "systemd",
    ("docs/guides/systemd.md", "turnout service install"): "systemd",
    ("docs/guides/upgrade.md", "pip install -U turnout"): "an index of packages",
    ("docs/guides/systemd.md", "sudo turnout service install --system --run-as app"): "systemd",
}


def stories_named() -> list[object]:
    return [pytest.param(story, id=story.name) for story in RUN_HERE]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", stories_named())
def test_a_story_of_the_documentation_goes_as_it_is_told(story: Story) -> None:
    with stage(story) as here:
        for block in story.blocks:
            here.tell(block)


def test_what_no_test_runs_is_listed_with_its_reason() -> None:
    found = {(block.page, block.first_command): block.not_run for block in BLOCKS if block.not_run}
    assert found == NOT_RUN
    run = sum(len(commands(block)) for block in BLOCKS if block.language in {"console", "sh"} and not block.not_run)
    report("commands of the documentation", run=run, blocks_not_run=len(found), reasons=sorted(set(found.values())))
    assert run > 100


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.language in RUN | READ, f"{block}: one of {sorted(RUN | READ)}, not {block.language!r}"
    if block.language == "text":
        assert not block.text.startswith("$ "), f"{block} has commands, which nobody would run"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_every_configuration_that_is_shown_is_one_that_turnout_takes(block: Block, tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(block.text)
    assert load_file(tmp_path / "turnout.toml"), "it has a service"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_every_json_that_is_shown_can_be_read(block: Block) -> None:
    assert json.loads(block.text)


def table(text: str, head: str) -> list[list[str]]:
    """The rows of the table that begins with this head."""
    rows: list[list[str]] = []
    for line in text[text.index(head) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_readmes_table_of_settings_has_keys_and_defaults_that_are_so() -> None:
    rows = table((ROOT / "README.md").read_text(), "| key | default | meaning |")
    assert len(rows) > 5
    for names, defaults, _ in rows:
        told, named = re.findall(r"`([^`]+)`", defaults), re.findall(r"`([^`]+)`", names)
        known = {name: key.default for name, key in KEYS.items() if name in named}
        assert set(known) == set(named), "every key is one"
        for default, key in zip(told, named, strict=False):
            if key != "stop.signal":  # null: the command decides, and TERM is what it comes to
                assert str(known[key]).lower() == default


def test_the_readmes_figures_are_those_of_the_last_benchmark() -> None:
    """Or near them: another run of the same code is that far off."""
    measured = table((ROOT / "bench/RESULTS.md").read_text(), "| case | relay | haproxy |")
    ratios = {row[0]: float(row[3].split()[0]) for row in measured if row[3]}
    told = [float(row[1].split()[0]) for row in table((ROOT / "README.md").read_text(), "| | turnout / HAProxy |")]
    cases = ("64 B, 1 connection, on one core", "64 B, 50", "connect +", "bulk up, 1 ", "bulk up, 16 ", "memory")
    found = [next(ratio for case, ratio in ratios.items() if case.startswith(begin)) for begin in cases]
    assert told == pytest.approx(found, rel=0.2, abs=0.1)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_link_to_a_file_leads_to_one(page: Path) -> None:
    """Those between pages, with their anchors, are checked by Sphinx as it builds; README and the like are not."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        for inner in token.children or ():
            target = str(inner.attrGet("href") or inner.attrGet("src") or "")
            if target and "://" not in target and not target.startswith("#"):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


@pytest.mark.parametrize(
    ("printed", "expected", "right"),
    [
        ("OK\n", "OK", True),
        ("OK\nmore\n", "OK", False),
        ("a\nb\nOK\n", "…\nOK", True),
        ("OK\n", "…\nOK", True),
        ("NOT OK\n", "…\nOK", False),
        ("one\nx\ny\ntwo\n", "one\n…\ntwo", True),
        ("one\ntwo\n", "one\n…\ntwo", True),
        ("one\nwo\n", "one\n…\ntwo", False),
        ("one\nrest\n", "one\n…", True),
        ("one\n", "one\n…", True),
        ("other\n", "one\n…", False),
        ("anything\nat all\n", "…", True),
        ("pid 7, port 26001\n", "pid 4711, port 20002", True),
        ("pid 7, up 3 min 2 s\n", "pid 4711, up 4 d 2 h", True),
        ("generation 2\n", "generation 3", False),
        ("would start x in /tmp/y\n", "would start x in …", True),
    ],
)
def test_what_is_printed_is_held_against_the_page(printed: str, expected: str, *, right: bool) -> None:
    assert fits(printed, expected) is right


def test_a_story_that_goes_wrong_fails(tmp_path: Path) -> None:
    wrong = Story("wrong", (Block("page", 1, "console", "$ echo yes\nno\n"),))
    failing = Story("failing", (Block("page", 1, "sh", "false\ntrue\n"),))
    lost = Story("lost", (Block("page", 1, "pycon", ">>> 1 + 1\n3\n"),))
    for story in (wrong, failing, lost):
        with stage(story) as here, pytest.raises(AssertionError):
            here.tell(story.blocks[0])
    assert not list(tmp_path.iterdir())
