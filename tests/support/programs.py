"""Foreign programs that tests put before and behind turnout; a test without its program is skipped, with the reason."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

# where a Debian package puts what is no command of an ordinary user
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def program(name: str, *, package: str) -> str:
    """The path of a program that ``package`` (of the distribution) brings."""
    return shutil.which(name, path=SEARCHED) or missing(name, f"no {name}: apt-get install {package}")


def wheel(name: str) -> Path:
    """The directory of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        missing(name, f"no {name}: pip install {name}")
    return Path(spec.submodule_search_locations[0])


def missing(name: str, reason: str) -> NoReturn:
    """Skip the test; where TURNOUT_REQUIRE (names, with commas between) has the name, fail it."""
    if name in os.environ.get("TURNOUT_REQUIRE", "").split(","):
        pytest.fail(f"{reason}; and TURNOUT_REQUIRE names it")
    pytest.skip(reason)
