"""File calls that a test can watch, fail or crash at, one by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from turnout.system.files import READ_LIMIT_BYTES, Files


class FaultyFiles(Files):
    """Counts the calls and asks ``strike(number, name)`` before each; whatever that raises is the call's failure."""

    def __init__(self, strike: Callable[[int, str], None] = lambda _number, _name: None) -> None:
        self.steps: list[str] = []
        self.touched: list[tuple[str, str]] = []
        self._strike = strike
        self._names: dict[int, str] = {}

    def _step(self, name: str, what: str) -> None:
        self.steps.append(name)
        self.touched.append((name, what))
        self._strike(len(self.steps) - 1, name)

    def create(self, path: Path, mode: int) -> int:
        self._step("create", path.name)
        fd = super().create(path, mode)
        self._names[fd] = path.name
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        name = self._names[fd]
        if ("write", name) in self.touched:
            return super().write(fd, data)
        half = super().write(fd, data[: len(data) // 2])  # so that a strike tears it
        self._step("write", name)
        return half

    def fsync(self, fd: int) -> None:
        self._step("fsync", self._names[fd])

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", f"{source.name} {target.name}")
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step("link", f"{source.name} {target.name}")
        super().link(source, target)

    def exchange(self, one: Path, other: Path) -> bool:
        self._step("exchange", f"{one.name} {other.name}")
        return super().exchange(one, other)

    def unlink(self, path: Path) -> None:
        self._step("unlink", path.name)
        super().unlink(path)

    def fsync_dir(self, directory: Path) -> None:
        self._step("fsync_dir", directory.name)

    def stat(self, path: Path) -> os.stat_result:
        self._step("stat", path.name)
        return super().stat(path)

    def read(self, path: Path, limit_bytes: int = READ_LIMIT_BYTES) -> tuple[bytes, os.stat_result]:
        self._step("read", path.name)
        return super().read(path, limit_bytes)


class UnsyncedFiles(Files):
    """The real calls but for the slow ones: for tests that write thousands of times and never lose power."""

    def fsync(self, fd: int) -> None:
        pass

    def fsync_dir(self, directory: Path) -> None:
        pass


class OldSystem(UnsyncedFiles):
    """A system, or a file system, that cannot exchange two names."""

    def exchange(self, one: Path, other: Path) -> bool:
        return False


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}
