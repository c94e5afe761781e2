"""Opening the page in a browser without the token in anybody's list of processes.

A browser is started with an address on its command line, which every user of the machine may read (proc(5)). So it is
started with that of a file which only its owner may read, and which leads on.
"""

from __future__ import annotations

import html
import os
import webbrowser
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from turnout.system.files import PRIVATE

PAGE: Final = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={url}">'
    '<title>turnout</title><a href="{url}">turnout</a>\n'
)


def has_screen(environ: Mapping[str, str]) -> bool:
    """Whether a browser would open in a window, and not in the terminal."""
    return any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


@contextmanager
def opener(directory: Path) -> Generator[Path]:
    """The path of the file that :func:`open_in_browser` may write; at the end it is gone."""
    path = directory / f"dashboard-{os.getpid()}.html"
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def open_in_browser(url: str, path: Path) -> bool:
    """Have a browser open ``url`` by way of ``path``; False: there is none, or the file cannot be written."""
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
        with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor: it was never anybody else's
            file.write(PAGE.format(url=html.escape(url)))
        return webbrowser.open(path.as_uri())
    except (OSError, webbrowser.Error):
        return False
