"""An interpreter, what is installed for it, and this checkout, where any user may read them."""

from __future__ import annotations

import compileall
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

NOBODY = 65534
ROOT = Path(__file__).parents[2]
NEEDED = ("src", "tests", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("test", "site-packages", "idlelib", "tkinter", "*.a")
_STATUS = "print(*(line for line in open('/proc/self/status') if line.startswith(('Uid', 'Cap'))), sep='')"


class Copy:
    """Made in a directory that is empty yet; nothing in it belongs to nobody but its ``work``.

    Where the files lie on one file system they are linked, which takes a second for all of them.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        place.chmod(0o755)
        base = Path(sys.base_prefix)
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self._tree(Path(sysconfig.get_path("stdlib")), place / "python" / "lib" / name)
        for library in (base / "lib").glob("libpython*"):
            _link(str(library.resolve()), str(place / "python" / "lib" / library.name))
        (place / "python" / "bin").mkdir()
        self.python = place / "python" / "bin" / name
        _link(str(Path(sys.executable).resolve()), str(self.python))
        site = place / "python" / "lib" / name / "site-packages"
        self._tree(Path(sysconfig.get_path("purelib")), site)
        for path in site.glob("*.pth"):  # a checkout that is installed in place is named there
            path.unlink()
        (site / "checkout.pth").write_text(f"{place / 'checkout' / 'src'}\n")
        for needed in NEEDED:
            if (ROOT / needed).is_dir():
                self._tree(ROOT / needed, place / "checkout" / needed)
            else:
                _link(str(ROOT / needed), str(place / "checkout" / needed))
        compileall.compile_dir(place / "checkout" / "src", quiet=1)  # nobody may write any
        self.work = place / "work"
        self.work.mkdir()
        if os.geteuid() == 0:
            os.chown(self.work, NOBODY, NOBODY)

    def run(self, *argv: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run Python as nobody, with no right that root has; without root, as who we are."""
        user = NOBODY if os.geteuid() == 0 else None
        return subprocess.run(
            [self.python, *argv],
            cwd=self.place / "checkout",
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self.work),
                "TMPDIR": str(self.work),
                "LD_LIBRARY_PATH": str(self.place / "python" / "lib"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "TURNOUT_REQUIRE": "reuseport",
                **{key: value for key, value in os.environ.items() if key == "TURNOUT_SOAK"},
            },
            user=user,
            group=user,
            extra_groups=[] if user else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def status(self) -> str:
        """Who it is that runs there, and with what capabilities (proc_pid_status(5))."""
        return self.run("-c", _STATUS, timeout_s=60).stdout

    @staticmethod
    def _tree(source: Path, target: Path) -> None:
        shutil.copytree(source, target, copy_function=_link, ignore=LEFT_OUT if source != ROOT / "tests" else None)
        for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
            directory.chmod(0o755)


def _link(source: str, target: str) -> str:
    """A further name for the same file where it can be had and everybody may read it, else a copy."""
    mode = Path(source).stat().st_mode
    if mode & stat.S_IROTH:
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return target
    shutil.copy2(source, target)  # with its time, which its bytecode names
    Path(target).chmod(mode | stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    return target
