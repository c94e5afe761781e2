"""Where a unit lies, and putting it there or taking it away. What somebody else wrote is not touched."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from turnout.cli.unit import MARK
from turnout.errors import ConflictError, NoSuchServiceError, StateUnwritableError
from turnout.system.files import Files
from turnout.system.user_directory import user_directory


class UnitFile(msgspec.Struct, frozen=True):
    """One unit, named without a suffix, of the system's service manager or the user's."""

    name: str
    system: bool

    @property
    def path(self) -> Path:
        if self.system:
            return Path("/etc/systemd/system") / f"{self.name}.service"
        config = Path(os.environ.get("XDG_CONFIG_HOME") or user_directory() / ".config")
        return config / "systemd" / "user" / f"{self.name}.service"

    def write(self, text: str, *, force: bool) -> None:
        """Put it in place, whole or not at all, mode 0644.

        Raises:
            ConflictError: one is there that turnout did not write, and ``force`` was not given.
            StateUnwritableError: no permission, a full disk.
        """
        self._must_be_ours(force=force)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o644)
            temporary.replace(self.path)
        except OSError as error:
            hint = "it takes root: sudo, or --user" if self.system else None
            raise StateUnwritableError(f"cannot write {self.path}: {error.strerror}", hint=hint) from error

    def remove(self, *, force: bool) -> None:
        """Take it away.

        Raises:
            NoSuchServiceError: there is none.
            ConflictError, StateUnwritableError: as :meth:`write`.
        """
        if not self.path.exists():
            raise NoSuchServiceError(f"there is no {self.path}", hint="turnout service install")
        self._must_be_ours(force=force)
        try:
            self.path.unlink()
        except OSError as error:
            raise StateUnwritableError(f"cannot remove {self.path}: {error.strerror}") from error

    def _must_be_ours(self, *, force: bool) -> None:
        try:
            theirs = MARK not in Files().read(self.path)[0].decode(errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateUnwritableError(f"cannot read {self.path}: {error.strerror}") from error
        if theirs and not force:
            raise ConflictError(f"{self.path} was not written by turnout", hint="look at it; --force replaces it")

    def next_steps(self, *, installed: bool) -> list[str]:
        """What a person types after it was put there or taken away."""
        systemctl = "systemctl" if self.system else "systemctl --user"
        if not installed:
            return [f"{systemctl} disable --now {self.name}.service", f"{systemctl} daemon-reload"]
        steps = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {self.name}.service"]
        return steps if self.system else [*steps, "loginctl enable-linger   # to start at boot, not at login"]
